package guest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io/fs"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// certificate makes a CA certificate in PEM form.
func certificate(t testing.TB, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name, Organization: []string{"The  Host"}},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func bundle(t testing.TB, text string) Bundle {
	t.Helper()
	b, err := ParseBundle([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseBundle(t *testing.T) {
	one, two := certificate(t, "one"), certificate(t, "two")
	for text, want := range map[string]int{
		one: 1, one + two: 2, "about one\n" + one + "\nabout two\n\n" + two + "the end": 2, strings.ReplaceAll(one, "\n", "\r\n"): 1,
	} {
		if b, err := ParseBundle([]byte(text)); err != nil || len(b) != want {
			t.Errorf("%d certificates, %v; want %d", len(b), err, want)
		}
	}
	for name, text := range map[string]string{
		"empty": "", "text": "hello", "cut off": one[:len(one)-30], "second cut off": one + two[:len(two)-30],
		"key":                   one + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"not DER":               "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
		"not base64":            strings.Replace(one, "\nM", "\n!", 1),
		"DER":                   string(bundle(t, one)[0].Raw),
		"certificate's request": strings.ReplaceAll(one, "CERTIFICATE", "CERTIFICATE REQUEST"),
	} {
		if b, err := ParseBundle([]byte(text)); !errors.Is(err, ErrCertificates) {
			t.Errorf("%s: %d certificates, %v", name, len(b), err)
		}
	}
}

func FuzzParseBundle(f *testing.F) {
	one := certificate(f, "one")
	f.Add([]byte(one))
	f.Add([]byte("x\n" + one + one[:50]))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := ParseBundle(text)
		if (err == nil) != (len(b) > 0) {
			t.Fatalf("%d certificates, %v", len(b), err)
		}
		var again []byte
		for _, c := range b {
			again = append(again, encode(c)...)
			_, _ = subjectHash(c.RawSubject) // whatever it says
		}
		if back, err := ParseBundle(again); len(b) > 0 && (err != nil || len(back) != len(b)) {
			t.Errorf("%d certificates become %d, %v", len(b), len(back), err)
		}
	})
}

// TestSubjectHash compares with the links that OpenSSL has made on this
// machine.
func TestSubjectHash(t *testing.T) {
	links, err := filepath.Glob("/etc/ssl/certs/*.[0-9]")
	if err != nil || len(links) < 50 {
		t.Fatalf("%d links: is ca-certificates installed?", len(links))
	}
	for _, link := range links {
		text, err := os.ReadFile(link)
		if err != nil {
			t.Error(err)
			continue
		}
		want, _, _ := strings.Cut(filepath.Base(link), ".")
		if got, err := subjectHash(bundle(t, string(text))[0].RawSubject); err != nil || got != want {
			t.Errorf("%s: hash %s, %v", link, got, err)
		}
	}
}

// TestSubjectHashOfStrings checks that what differs in form only hashes alike.
func TestSubjectHashOfStrings(t *testing.T) {
	subject := func(tag int, value string) []byte {
		type attribute struct {
			Type  asn1.ObjectIdentifier
			Value asn1.RawValue
		}
		type names []attribute
		type set struct {
			Names names `asn1:"set"`
		}
		der, err := asn1.Marshal(set{names{{asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.RawValue{Tag: tag, Bytes: []byte(value)}}}})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	want, err := subjectHash(subject(asn1.TagUTF8String, "a b é"))
	if err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{
		"spaces and capitals": subject(asn1.TagPrintableString, " A \t B é  "),
		"Latin-1":             subject(asn1.TagT61String, "A b \xe9"),
		"UTF-16":              subject(asn1.TagBMPString, "\x00a\x00 \x00B\x00 \x00\xe9"),
		"UTF-32":              subject(tagUniversalString, "\x00\x00\x00a\x00\x00\x00 \x00\x00\x00B\x00\x00\x00 \x00\x00\x00\xe9"),
	} {
		if got, err := subjectHash(der); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", name, got, err, want)
		}
	}
	if got, err := subjectHash(subject(asn1.TagUTF8String, "a b É")); err != nil || got == want {
		t.Errorf("letters beyond ASCII are not made small: %s, %v", got, err)
	}
	for _, der := range [][]byte{nil, {0x30}, {0x30, 2, 0x31, 5}, {0x30, 4, 0x31, 2, 0x30, 9}, append(subject(12, "a"), 0)} {
		if got, err := subjectHash(der); err == nil {
			t.Errorf("%x: %s", der, got)
		}
	}
}

const (
	debianBundle = "etc/ssl/certs/ca-certificates.crt"
	fedoraBundle = "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"
)

// layouts are systems as their packages leave them; "->" makes a link.
var layouts = map[string]map[string]string{
	"Debian": {
		debianBundle:                              "# theirs\n",
		"etc/ssl/certs/theirs.pem":                "x",
		"usr/local/share/ca-certificates/.keep":   "",
		"usr/local/share/ca-certificates/own.crt": "own",
	},
	"Alpine": {
		debianBundle:                            "# theirs",
		"etc/ssl/cert.pem":                      "->certs/ca-certificates.crt",
		"usr/local/share/ca-certificates/.keep": "",
	},
	"Fedora": {
		fedoraBundle:                            "# theirs\n",
		"etc/pki/tls/certs/ca-bundle.crt":       "->../../ca-trust/extracted/pem/tls-ca-bundle.pem",
		"etc/ssl/certs":                         "->../pki/tls/certs",
		"etc/pki/ca-trust/source/anchors/.keep": "",
	},
	"none": {},
}

// system makes a root directory from a layout.
func system(t *testing.T, layout map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for _, name := range slices.Sorted(maps.Keys(layout)) {
		path := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if to, link := strings.CutPrefix(layout[name], "->"); link {
			err = errors.Join(err, os.Symlink(to, path))
		} else {
			err = errors.Join(err, os.WriteFile(path, []byte(layout[name]), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// tree is all files below root: content, or "->" and where a link leads.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.Type() == fs.ModeSymlink {
			to, err := os.Readlink(path)
			all[name] = "->" + to
			return err
		}
		b, err := os.ReadFile(path)
		all[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestTrust(t *testing.T) {
	one, two, three := certificate(t, "one"), certificate(t, "two"), certificate(t, "three")
	hash := func(text string) string {
		h, err := subjectHash(bundle(t, text)[0].RawSubject)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	for name, layout := range layouts {
		t.Run(name, func(t *testing.T) {
			root := system(t, layout)
			// Two certificates, twice; then another in their place.
			for _, certs := range [][]string{{one, two}, {one, two}, {three}} {
				if err := trust(root, bundle(t, "comment\n"+strings.Join(certs, ""))); err != nil {
					t.Fatal(err)
				}
				want := maps.Clone(layout)
				path := debianBundle
				if name == "Fedora" {
					path = fedoraBundle
				}
				block := "# BEGIN certificates of the host\n" + strings.Join(certs, "") + "# END certificates of the host\n"
				if theirs := layout[path]; theirs != "" {
					block = strings.TrimSuffix(theirs, "\n") + "\n" + block
				}
				want[path] = block
				for i, cert := range certs {
					n := string(rune('1' + i))
					hashes := "etc/ssl/certs/"
					switch name {
					case "Fedora":
						hashes = "etc/pki/tls/certs/"
						want["etc/pki/ca-trust/source/anchors/wrenn-ca-"+n+".crt"] = cert
					case "Debian", "Alpine":
						want["usr/local/share/ca-certificates/wrenn-ca-"+n+".crt"] = cert
					}
					want[hashes+"wrenn-ca-"+n+".pem"] = cert
					want[hashes+hash(cert)+".0"] = "->wrenn-ca-" + n + ".pem"
				}
				if got := tree(t, root); !maps.Equal(got, want) {
					t.Errorf("%d certificates:\ngot  %q\nwant %q", len(certs), got, want)
				}
			}
		})
	}
}

// TestTrustTwice checks that nothing is written when nothing changes.
func TestTrustTwice(t *testing.T) {
	root := system(t, layouts["Debian"])
	certs := bundle(t, certificate(t, "one"))
	stamps := func() map[string]stamp {
		all := make(map[string]stamp)
		for name := range tree(t, root) {
			all[name] = stampOf(filepath.Join(root, name))
		}
		return all
	}
	if err := trust(root, certs); err != nil {
		t.Fatal(err)
	}
	before := stamps()
	if err := trust(root, certs); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(stamps(), before) {
		t.Error("files were written again")
	}
}

// TestTrustHashTaken checks that a certificate of theirs with the same subject
// keeps its link.
func TestTrustHashTaken(t *testing.T) {
	root := system(t, layouts["Debian"])
	certs := bundle(t, certificate(t, "one"))
	hash, err := subjectHash(certs[0].RawSubject)
	if err != nil {
		t.Fatal(err)
	}
	taken := filepath.Join(root, "etc/ssl/certs", hash+".0")
	if err := os.Symlink("theirs.pem", taken); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := trust(root, certs); err != nil {
			t.Fatal(err)
		}
	}
	all := tree(t, filepath.Join(root, "etc/ssl/certs"))
	if all[hash+".0"] != "->theirs.pem" || all[hash+".1"] != "->wrenn-ca-1.pem" || all[hash+".2"] != "" {
		t.Errorf("links %q", all)
	}
}

// TestTrustFollowsNoPlantedLink checks that a link which somebody put where
// ours goes is replaced: on Debian, group staff may write there.
func TestTrustFollowsNoPlantedLink(t *testing.T) {
	root := system(t, layouts["Debian"])
	victim := filepath.Join(root, "etc/shadow")
	write(t, victim, "secret")
	dir := filepath.Join(root, "usr/local/share/ca-certificates")
	for _, name := range []string{"wrenn-ca-1.crt", "wrenn-ca-2.crt"} {
		if err := os.Symlink(victim, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	one := certificate(t, "one")
	if err := trust(root, bundle(t, one)); err != nil {
		t.Fatal(err)
	}
	check(t, victim, "secret")
	check(t, filepath.Join(dir, "wrenn-ca-1.crt"), one)
}

func TestSetBlock(t *testing.T) {
	certs := []byte("CERTS\n")
	block := bundleBegin + "CERTS\n" + bundleEnd
	for before, want := range map[string]string{
		"":  block,
		"a": "a\n" + block,
		"a\n" + bundleBegin + "OLD\n" + bundleEnd + "b": "a\n" + block + "b",
		"a\n" + bundleBegin + "OLD":                     "a\n" + bundleBegin + "OLD\n" + block,
	} {
		if got := setBlock([]byte(before), certs); string(got) != want {
			t.Errorf("%q: %q", before, got)
		}
	}
}

func FuzzSetBlock(f *testing.F) {
	for _, s := range []string{"", "a", bundleBegin + "x\n" + bundleEnd, bundleEnd + bundleBegin, bundleBegin + bundleBegin + bundleEnd} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		once := setBlock(bytes.Clone(text), []byte("CERTS\n"))
		if !bytes.Contains(once, []byte("CERTS\n"+bundleEnd)) {
			t.Errorf("%q becomes %q", text, once)
		}
		if twice := setBlock(bytes.Clone(once), []byte("CERTS\n")); !bytes.Equal(once, twice) {
			t.Errorf("%q, then %q, then %q", text, once, twice)
		}
	})
}
