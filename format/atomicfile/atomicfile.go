// Package atomicfile writes a file so that its final name only ever shows a
// complete file: the bytes go to a temporary name in the same folder, are synced
// to disk, and are renamed in one step.
package atomicfile

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// bufferSize is how much is gathered before a write reaches the system.
const bufferSize = 1 << 20

// A File is a file that does not exist under its final name until Commit.
// It is not safe for concurrent use.
type File struct {
	path string
	f    *os.File
	w    *bufio.Writer
	hash hash.Hash
	n    int64
	err  error
	done bool
}

// Create starts writing path. The temporary file lies in path's folder, so that
// the final rename stays within one file system. An existing path is replaced
// by Commit; callers that must not overwrite check before.
func Create(path string) (*File, error) {
	f, err := createTemp(path)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot create a temporary file beside it: %w", path, err)
	}
	return newFile(path, f), nil
}

func newFile(path string, f *os.File) *File {
	return &File{path: path, f: f, w: bufio.NewWriterSize(f, bufferSize), hash: sha256.New()}
}

// createTemp is like os.CreateTemp, but the file gets the permissions that the
// user's umask gives to new files: those of CreateTemp, private to the user, are
// not meant for a model, and a fixed mode would overrule the umask.
func createTemp(path string) (*os.File, error) {
	dir, base := filepath.Split(path)
	for try := 0; ; try++ {
		name := fmt.Sprintf("%s.%s.%08x.tmp", dir, base, rand.Uint32())
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		if err == nil || !errors.Is(err, fs.ErrExist) || try == 100 {
			return f, err
		}
	}
}

// Write appends p. After the first error every later call returns that error.
func (f *File) Write(p []byte) (int, error) {
	if f.done && f.err == nil {
		f.err = fmt.Errorf("%s: written to after Commit or Abort", f.path)
	}
	if f.err != nil {
		return 0, f.err
	}
	n, err := f.w.Write(p)
	f.hash.Write(p[:n])
	f.n += int64(n)
	if err != nil {
		f.err = fmt.Errorf("%s: write failed at offset %d: %w", f.path, f.n, err)
	}
	return n, f.err
}

// Offset returns the number of bytes written so far.
func (f *File) Offset() int64 { return f.n }

// SHA256 returns the digest, in hex, of the bytes written so far; after a Commit without
// error it is the file's. So a large file need not be read again to be described.
func (f *File) SHA256() string { return hex.EncodeToString(f.hash.Sum(nil)) }

// Path returns the final name.
func (f *File) Path() string { return f.path }

// Commit flushes, syncs and renames. On error the temporary file is removed and
// the final name is as it was.
func (f *File) Commit() error {
	if f.done {
		return fmt.Errorf("%s: Commit or Abort was called before", f.path)
	}
	err := f.err
	if err == nil {
		if err = f.w.Flush(); err != nil {
			err = fmt.Errorf("%s: write failed: %w", f.path, err)
		}
	}
	if err == nil {
		if err = f.f.Sync(); err != nil {
			err = fmt.Errorf("%s: sync failed: %w", f.path, err)
		}
	}
	if err != nil {
		f.Abort()
		return err
	}
	f.done = true
	if err := f.f.Close(); err != nil {
		os.Remove(f.f.Name())
		return fmt.Errorf("%s: close failed: %w", f.path, err)
	}
	if err := os.Rename(f.f.Name(), f.path); err != nil {
		os.Remove(f.f.Name())
		return fmt.Errorf("%s: rename failed: %w", f.path, err)
	}
	return syncDir(filepath.Dir(f.path))
}

// Abort throws the temporary file away. It does nothing after Commit, so it can be deferred.
func (f *File) Abort() {
	if f.done {
		return
	}
	f.done = true
	f.f.Close()
	os.Remove(f.f.Name())
}

// WriteFile writes data to path in one step.
func WriteFile(path string, data []byte) error {
	f, err := Create(path)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Commit()
}

// syncDir makes the rename itself durable. Some file systems cannot sync a
// folder; the file's own bytes are safe by then, so that is not an error.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer d.Close()
	_ = d.Sync()
	return nil
}
