// Package atomicfile writes a file so that its final name only ever shows a
// complete file: the bytes go to a temporary name in the same folder, are synced
// to disk, and are renamed in one step.
package atomicfile

import (
	"bufio"
	"errors"
	"fmt"
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
	n    int64
	err  error
	done bool
}

// Create starts writing path. The temporary file lies in path's folder, so that
// the final rename stays within one file system. An existing path is replaced
// by Commit; callers that must not overwrite check before.
func Create(path string) (*File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return nil, fmt.Errorf("%s: cannot create a temporary file beside it: %w", path, err)
	}
	// CreateTemp makes the file private; a model file is meant to be read by others.
	if err := f.Chmod(0o644); err != nil {
		f.Close()
		os.Remove(f.Name())
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &File{path: path, f: f, w: bufio.NewWriterSize(f, bufferSize)}, nil
}

// Write appends p. After the first error every later call returns that error.
func (f *File) Write(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	n, err := f.w.Write(p)
	f.n += int64(n)
	if err != nil {
		f.err = fmt.Errorf("%s: write failed at offset %d: %w", f.path, f.n, err)
	}
	return n, f.err
}

// Offset returns the number of bytes written so far.
func (f *File) Offset() int64 { return f.n }

// Path returns the final name.
func (f *File) Path() string { return f.path }

// Commit flushes, syncs and renames. On error nothing is left under either name.
func (f *File) Commit() error {
	if f.done {
		return errors.New("atomicfile: Commit or Abort was called before")
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
