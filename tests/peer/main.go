// Reads an eStargz blob as the peer does: with stargz-snapshotter's own library, Debian's version of it.
//
//	peer BLOB TOC-DIGEST
//
// Opens the blob, verifies its TOC against the digest, walks every entry, reads every file in full, verifies every chunk,
// and prints what it saw as one JSON object: name -> entry. The first thing that is wrong ends it with exit code 1.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
)

type seen struct {
	Type   string            `json:"type"`
	Size   int64             `json:"size"`
	Mode   int64             `json:"mode"`
	UID    int               `json:"uid"`
	GID    int               `json:"gid"`
	Mtime  int64             `json:"mtime_ns"`
	Link   string            `json:"link"`
	Xattrs map[string][]byte `json:"xattrs"`
	Chunks int               `json:"chunks"`
	SHA256 string            `json:"sha256"`
}

type reader struct {
	*estargz.Reader
	verifier estargz.TOCEntryVerifier
	found    map[string]seen
}

func main() {
	if len(os.Args) != 3 {
		fail(fmt.Errorf("usage: peer BLOB TOC-DIGEST"))
	}
	file, err := os.Open(os.Args[1])
	fail(err)
	info, err := file.Stat()
	fail(err)
	opened, err := estargz.Open(io.NewSectionReader(file, 0, info.Size()))
	fail(err)
	verifier, err := opened.VerifyTOC(digest.Digest(os.Args[2]))
	fail(err)
	r := reader{opened, verifier, map[string]seen{}}
	root, ok := opened.Lookup("")
	if !ok {
		fail(fmt.Errorf("the blob has no root"))
	}
	r.walk("", root)
	fail(json.NewEncoder(os.Stdout).Encode(r.found))
}

func (r reader) walk(name string, entry *estargz.TOCEntry) {
	entry.ForeachChild(func(base string, child *estargz.TOCEntry) bool {
		r.entry(path.Join(name, base), child)
		return true
	})
}

func (r reader) entry(name string, entry *estargz.TOCEntry) {
	it := seen{
		Type: entry.Type, Size: entry.Size, Mode: entry.Mode & 07777, UID: entry.UID, GID: entry.GID,
		Mtime: entry.ModTime().UnixNano(), Link: entry.LinkName, Xattrs: entry.Xattrs,
	}
	if entry.Type == "reg" {
		it.Chunks, it.SHA256 = r.content(name, entry.Size)
	}
	r.found[name] = it
	if entry.Type == "dir" {
		r.walk(name, entry)
	}
}

// content reads a file chunk by chunk, each verified, and returns their count and the sha256 of the whole.
func (r reader) content(name string, size int64) (int, string) {
	whole, chunks := sha256.New(), 0
	if size > 0 {
		file, err := r.OpenFile(name)
		fail(err)
		for offset := int64(0); offset < size; chunks++ {
			chunk, ok := r.ChunkEntryForOffset(name, offset)
			if !ok || chunk.ChunkOffset != offset || chunk.ChunkSize <= 0 {
				fail(fmt.Errorf("%s: no chunk begins at %d", name, offset))
			}
			verifier, err := r.verifier.Verifier(chunk)
			fail(err)
			section := io.NewSectionReader(file, offset, chunk.ChunkSize)
			copied, err := io.Copy(io.MultiWriter(whole, verifier), section)
			fail(err)
			if copied != chunk.ChunkSize || !verifier.Verified() {
				fail(fmt.Errorf("%s: the chunk at %d is not what its digest says", name, offset))
			}
			offset += copied
		}
	}
	return chunks, hex.EncodeToString(whole.Sum(nil))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}
