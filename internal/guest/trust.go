package guest

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrCertificates means that a bundle is not what it should be.
var ErrCertificates = errors.New("not a bundle of PEM certificates")

// Bundle is a list of CA certificates to trust; see ParseBundle.
type Bundle []*x509.Certificate

// ParseBundle reads PEM certificates. Text around them is passed over, anything
// else in PEM form is an error.
func ParseBundle(text []byte) (Bundle, error) {
	var certs Bundle
	for {
		block, rest := pem.Decode(text)
		switch {
		case block == nil && bytes.Contains(text, []byte("-----BEGIN")):
			return nil, fmt.Errorf("%w: a block is malformed", ErrCertificates)
		case block == nil && len(certs) == 0:
			return nil, fmt.Errorf("%w: there is none in it", ErrCertificates)
		case block == nil:
			return certs, nil
		case block.Type != "CERTIFICATE":
			return nil, fmt.Errorf("%w: there is a %.40q in it", ErrCertificates, block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d: %v", ErrCertificates, len(certs)+1, err)
		}
		certs, text = append(certs, cert), rest
	}
}

// Where distributions keep the certificates they trust, as far as we know.
var (
	// bundleFiles hold all of them in one file; several are often links to one.
	bundleFiles = []string{
		"etc/ssl/certs/ca-certificates.crt",                // Debian, Alpine, Arch
		"etc/ssl/cert.pem",                                 // Alpine, and static programs anywhere
		"etc/pki/tls/certs/ca-bundle.crt",                  // Fedora
		"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora
		"etc/ssl/ca-bundle.pem",                            // openSUSE
		"var/lib/ca-certificates/ca-bundle.pem",            // openSUSE
		"etc/ca-certificates/extracted/tls-ca-bundle.pem",  // Arch
	}
	// anchorDirs hold what an administrator adds, from which the tools of the
	// distribution make the bundle anew.
	anchorDirs = []string{
		"usr/local/share/ca-certificates",          // Debian, Alpine
		"etc/pki/ca-trust/source/anchors",          // Fedora
		"etc/pki/trust/anchors",                    // openSUSE
		"etc/ca-certificates/trust-source/anchors", // Arch
	}
)

const (
	// hashDir has links named by hashes of subjects, by which OpenSSL looks
	// certificates up.
	hashDir = "etc/ssl/certs"
	// anchorPrefix begins the names of our files, so that we find them again.
	anchorPrefix = "wrenn-ca-"

	bundleBegin = "# BEGIN certificates of the host\n"
	bundleEnd   = "# END certificates of the host\n"
)

// trust makes every program of the system below the directory root trust
// certs, in place of those that an earlier call installed. It does what the
// tools of distributions do, without them. A system that has no bundle gets one
// of these alone.
func trust(root string, certs Bundle) error {
	var text []byte
	for _, c := range certs {
		text = append(text, encode(c)...)
	}
	found := false
	for _, name := range bundleFiles {
		path := filepath.Join(root, name)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		found = true
		err := edit(path, func(b []byte) []byte { return setBlock(b, text) })
		if err != nil {
			return fmt.Errorf("install certificates: %w", err)
		}
	}
	if !found {
		path := filepath.Join(root, bundleFiles[0])
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = edit(path, func([]byte) []byte { return setBlock(nil, text) })
		}
		if err != nil {
			return fmt.Errorf("install certificates: %w", err)
		}
	}
	return installAnchors(root, certs)
}

// encode is c alone in PEM form, without the headers it may have come with.
func encode(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// setBlock puts certs between our marks in the text of a bundle.
func setBlock(text, certs []byte) []byte {
	block := slices.Concat([]byte(bundleBegin), certs, []byte(bundleEnd))
	if begin := bytes.LastIndex(text, []byte(bundleBegin)); begin >= 0 {
		if _, after, ended := bytes.Cut(text[begin:], []byte(bundleEnd)); ended {
			return slices.Concat(text[:begin], block, after)
		}
	}
	// A bundle without our marks, or one that something cut off between them:
	// then what is there stays.
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	return append(text, block...)
}

// installAnchors gives each certificate a file in the anchor directories that
// exist, and a link in hashDir.
func installAnchors(root string, certs Bundle) error {
	for _, name := range anchorDirs {
		dir := filepath.Join(root, name)
		if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
			continue
		}
		wanted := make(map[string][]byte)
		for i, c := range certs {
			wanted[anchorPrefix+strconv.Itoa(i+1)+".crt"] = encode(c)
		}
		if err := syncFiles(dir, wanted); err != nil {
			return fmt.Errorf("install certificates: %w", err)
		}
	}
	if err := linkHashes(filepath.Join(root, hashDir), certs); err != nil {
		return fmt.Errorf("install certificates: %w", err)
	}
	return nil
}

// syncFiles makes the files of ours in dir be those that are wanted. Others may
// write to such a directory: links are replaced, not followed.
func syncFiles(dir string, wanted map[string][]byte) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, keep := wanted[e.Name()]; !keep && strings.HasPrefix(e.Name(), anchorPrefix) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for name, content := range wanted {
		path := filepath.Join(dir, name)
		if fi, err := os.Lstat(path); err == nil && fi.Mode().IsRegular() {
			if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
				continue
			}
		}
		if err := renameInto(path, content); err != nil {
			return err
		}
	}
	return nil
}

// linkHashes gives each certificate a file in dir and a link to it by which
// OpenSSL finds it, HASH.N with the first N that is free. Where OpenSSL has no
// such directory nothing is to do.
func linkHashes(dir string, certs Bundle) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	wanted := make(map[string][]byte)
	for i, c := range certs {
		wanted[anchorPrefix+strconv.Itoa(i+1)+".pem"] = encode(c)
	}
	if err := syncFiles(dir, wanted); err != nil {
		return err
	}
	links := make(map[string]string) // by file, the hash
	for i, c := range certs {
		// One that OpenSSL could not read either needs no link.
		if hash, err := subjectHash(c.RawSubject); err == nil {
			links[anchorPrefix+strconv.Itoa(i+1)+".pem"] = hash
		}
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		to, err := os.Readlink(path)
		if err != nil || !strings.HasPrefix(to, anchorPrefix) {
			continue
		}
		if hash, _, _ := strings.Cut(e.Name(), "."); links[to] == hash {
			delete(links, to) // it is there
		} else if err := os.Remove(path); err != nil { // of an earlier certificate
			return err
		}
	}
	for to, hash := range links {
		if err := linkFree(to, filepath.Join(dir, hash)); err != nil {
			return err
		}
	}
	return nil
}

// linkFree links path.N to target, with the first N that is free.
func linkFree(target, path string) error {
	for n := 0; ; n++ {
		if err := os.Symlink(target, path+"."+strconv.Itoa(n)); !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
}
