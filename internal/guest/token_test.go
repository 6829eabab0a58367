package guest

import (
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

const tokenText = "t0ken-s3cret"

func TestTokenMatches(t *testing.T) {
	set := NewToken(tokenText)
	for sent, want := range map[string]bool{
		tokenText: true, "": false, tokenText + "x": false, tokenText[1:]: false, strings.ToUpper(tokenText): false,
		tokenText + "\x00": false, redacted: false, strings.Repeat("a", 1<<16): false,
	} {
		if got := set.Matches(sent); got != want {
			t.Errorf("%.20q matches: %v", sent, got)
		}
	}
	if !set.IsSet() {
		t.Error("the token is not set")
	}
}

// Without a token nothing matches, not even nothing.
func TestNoTokenMatchesNothing(t *testing.T) {
	for _, none := range []Token{{}, NewToken("")} {
		if none.IsSet() || none.Matches("") || none.Matches(tokenText) || none.Matches(string(make([]byte, sha256.Size))) {
			t.Errorf("an unset token: set %v", none.IsSet())
		}
	}
}

func TestTokenSign(t *testing.T) {
	if got := NewToken(tokenText).Sign("a:", ":b"); got != sha256.Sum256([]byte("a:"+tokenText+":b")) {
		t.Errorf("signature %x", got)
	}
}

// TestTokenCannotBePrinted tries every way in which values end up in logs and
// answers, alone and inside of settings.
func TestTokenCannotBePrinted(t *testing.T) {
	settings := &Settings{User: "user", Token: NewToken(tokenText)}
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(tokenText)))
	var out bytes.Buffer
	for _, v := range []any{settings, *settings, settings.Token, &settings.Token, []Token{settings.Token}, map[Token]Token{settings.Token: settings.Token}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p", "%T", "%b", "%c", "%U"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		for _, h := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
			slog.New(h).Error("state", "value", v, slog.Any("again", v))
		}
		b, err := json.Marshal(v)
		out.Write(b)
		fmt.Fprintln(&out, err)
		fmt.Fprintln(&out, gob.NewEncoder(&out).Encode(v))
	}
	text := out.String()
	for _, leak := range []string{tokenText, fmt.Sprintf("%x", tokenText), strings.ToUpper(fmt.Sprintf("%x", tokenText)), sum, strings.ToUpper(sum), fmt.Sprint([]byte(tokenText)), fmt.Sprint([]byte(tokenText)[1:3])} {
		if strings.Contains(text, leak) {
			t.Errorf("printed: %s", leak)
		}
	}
	if !strings.Contains(text, redacted) {
		t.Error("nothing was printed at all")
	}
}
