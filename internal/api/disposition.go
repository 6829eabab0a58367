package api

import (
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// disposition is the value of Content-Disposition for a file of that name (RFC
// 6266). A name beyond printable ASCII is there twice, percent-encoded for
// those who know (RFC 8187), and with "_" in place of what the others would not
// read. Bytes that are not UTF-8 become U+FFFD, which is all that the header
// can say of them.
func disposition(kind, name string) string {
	if isToken(name) {
		return kind + "; filename=" + name
	}
	var b strings.Builder
	b.WriteString(kind + `; filename="`)
	name = strings.ToValidUTF8(name, string(utf8.RuneError))
	plain := true
	for _, r := range name {
		switch {
		case r < ' ' || r > '~':
			b.WriteByte('_')
			plain = false
		case r == '"', r == '\\':
			b.WriteByte('\\')
			fallthrough
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	if !plain {
		b.WriteString("; filename*=UTF-8''")
		percentEncode(&b, name)
	}
	return b.String()
}

// isToken tells what needs no quotes (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		if !tokenByte(s[i]) {
			return false
		}
	}
	return s != ""
}

func tokenByte(c byte) bool {
	return isAlphanumeric(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

func isAlphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// percentEncode appends s, with all but attr-char (RFC 8187) escaped.
func percentEncode(b *strings.Builder, s string) {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; isAlphanumeric(c) || strings.IndexByte("!#$&+-.^_`|~", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		}
	}
}

// contentType goes by the extension of path. The list is ours: the system's
// would differ from guest to guest, and costs reading its files.
func contentType(path string) string {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".txt", ".log", ".conf", ".cfg", ".ini", ".toml", ".env",
		".c", ".h", ".cc", ".cpp", ".go", ".rs", ".py", ".rb", ".java", ".kt", ".sh", ".sql", ".ts", ".tsx", ".jsx", ".diff", ".patch":
		return "text/plain; charset=utf-8"
	case ".html", ".htm":
		return "text/html; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".js", ".mjs":
		return "text/javascript; charset=utf-8"
	case ".csv":
		return "text/csv; charset=utf-8"
	case ".tsv":
		return "text/tab-separated-values; charset=utf-8"
	case ".md", ".markdown":
		return "text/markdown; charset=utf-8"
	case ".xml":
		return "text/xml; charset=utf-8"
	case ".yaml", ".yml":
		return "application/yaml"
	case ".json", ".map":
		return "application/json"
	case ".jsonl", ".ndjson":
		return "application/jsonl"
	case ".ipynb":
		return "application/x-ipynb+json"
	case ".wasm":
		return "application/wasm"
	case ".pdf":
		return "application/pdf"
	case ".png":
		return "image/png"
	case ".jpg", ".jpeg":
		return "image/jpeg"
	case ".gif":
		return "image/gif"
	case ".webp":
		return "image/webp"
	case ".avif":
		return "image/avif"
	case ".svg":
		return "image/svg+xml"
	case ".ico":
		return "image/x-icon"
	case ".bmp":
		return "image/bmp"
	case ".tif", ".tiff":
		return "image/tiff"
	case ".mp3":
		return "audio/mpeg"
	case ".wav":
		return "audio/wav"
	case ".ogg":
		return "audio/ogg"
	case ".flac":
		return "audio/flac"
	case ".mp4":
		return "video/mp4"
	case ".webm":
		return "video/webm"
	case ".mov":
		return "video/quicktime"
	case ".woff":
		return "font/woff"
	case ".woff2":
		return "font/woff2"
	case ".ttf":
		return "font/ttf"
	case ".otf":
		return "font/otf"
	case ".tar":
		return "application/x-tar"
	case ".gz", ".tgz":
		return "application/gzip"
	case ".zst":
		return "application/zstd"
	case ".bz2":
		return "application/x-bzip2"
	case ".xz":
		return "application/x-xz"
	case ".zip":
		return "application/zip"
	case ".7z":
		return "application/x-7z-compressed"
	case ".docx":
		return "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
	case ".xlsx":
		return "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
	case ".pptx":
		return "application/vnd.openxmlformats-officedocument.presentationml.presentation"
	case ".parquet":
		return "application/vnd.apache.parquet"
	default:
		return "application/octet-stream"
	}
}
