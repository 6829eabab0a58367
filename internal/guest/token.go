package guest

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

// redacted stands for a token wherever one is printed.
const redacted = "[redacted]"

// Token is the access token of requests; the zero value means that none is
// set. It cannot be printed, logged or marshalled by accident, in no form and
// inside no other value: all that can be done with it is to compare, and to
// hash it into a signature.
type Token struct {
	held *secret // a pointer, since a wrong verb makes fmt print fields
}

type secret struct {
	text string
	sum  [sha256.Size]byte // of text
}

// NewToken holds text; "" is no token.
func NewToken(text string) Token {
	if text == "" {
		return Token{}
	}
	return Token{held: &secret{text: text, sum: sha256.Sum256([]byte(text))}}
}

// IsSet tells whether there is a token.
func (t Token) IsSet() bool { return t.held != nil }

// Matches tells whether a token is set and sent equals it. How long it takes
// depends on the length of sent alone: sums are compared, and nobody can
// choose the sum that a guess has.
func (t Token) Matches(sent string) bool {
	if t.held == nil {
		return false
	}
	sum := sha256.Sum256([]byte(sent))
	return subtle.ConstantTimeCompare(sum[:], t.held.sum[:]) == 1
}

// Sign answers SHA-256 of before, the token and after. A token is set.
func (t Token) Sign(before, after string) [sha256.Size]byte {
	return sha256.Sum256([]byte(before + t.held.text + after))
}

// String implements fmt.Stringer without telling the token.
func (t Token) String() string { return redacted }

// Format implements fmt.Formatter, for the verbs that String is not asked for.
func (t Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer.
func (t Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler, which JSON asks as well.
func (t Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }
