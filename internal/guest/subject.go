package guest

import (
	"crypto/sha1" //nolint:gosec // not for security: the names that OpenSSL looks for
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf16"
)

// subjectHash is the name under which OpenSSL looks for a certificate in a
// directory: the beginning of the SHA-1 of its subject in canonical form, eight
// hexadecimal digits. der is the subject as the certificate has it.
func subjectHash(der []byte) (string, error) {
	var name asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &name); err != nil || len(rest) > 0 {
		return "", errors.Join(errSubject, err)
	}
	var canonical []byte
	for rest := name.Bytes; len(rest) > 0; {
		var set asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &set); err != nil {
			return "", errors.Join(errSubject, err)
		}
		if canonical, err = appendCanonical(canonical, set); err != nil {
			return "", err
		}
	}
	sum := sha1.Sum(canonical) //nolint:gosec // see above
	return fmt.Sprintf("%08x", binary.LittleEndian.Uint32(sum[:])), nil
}

var errSubject = errors.New("malformed subject")

// appendCanonical appends one relative distinguished name, a SET of attributes:
// strings become UTF-8 in small letters, with single spaces between words.
func appendCanonical(out []byte, set asn1.RawValue) ([]byte, error) {
	var attributes []byte
	for rest := set.Bytes; len(rest) > 0; {
		var a struct {
			Type  asn1.ObjectIdentifier
			Value asn1.RawValue
		}
		var err error
		if rest, err = asn1.Unmarshal(rest, &a); err != nil {
			return nil, errors.Join(errSubject, err)
		}
		if text, is := stringOf(a.Value); is {
			a.Value = asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(strings.Join(strings.FieldsFunc(lower(text), isSpace), " "))}
		}
		der, err := asn1.Marshal(a)
		if err != nil {
			return nil, errors.Join(errSubject, err)
		}
		attributes = append(attributes, der...)
	}
	der, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: attributes})
	if err != nil {
		return nil, errors.Join(errSubject, err)
	}
	return append(out, der...), nil
}

// Tags of strings that package asn1 has no names for.
const (
	tagVisibleString   = 26
	tagUniversalString = 28
)

// stringOf decodes the kinds of string that have a canonical form.
func stringOf(v asn1.RawValue) (string, bool) {
	if v.Class != asn1.ClassUniversal {
		return "", false
	}
	switch v.Tag {
	case asn1.TagUTF8String, asn1.TagPrintableString, asn1.TagIA5String, tagVisibleString:
		return string(v.Bytes), true
	case asn1.TagT61String: // taken for Latin-1
		runes := make([]rune, len(v.Bytes))
		for i, b := range v.Bytes {
			runes[i] = rune(b)
		}
		return string(runes), true
	case asn1.TagBMPString:
		units := make([]uint16, len(v.Bytes)/2)
		for i := range units {
			units[i] = binary.BigEndian.Uint16(v.Bytes[2*i:])
		}
		return string(utf16.Decode(units)), true
	case tagUniversalString:
		runes := make([]rune, len(v.Bytes)/4)
		for i := range runes {
			runes[i] = rune(binary.BigEndian.Uint32(v.Bytes[4*i:]))
		}
		return string(runes), true
	}
	return "", false
}

// lower makes small letters of ASCII alone, as OpenSSL does.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// isSpace is isspace(3) of the C locale.
func isSpace(r rune) bool { return r == ' ' || '\t' <= r && r <= '\r' }
