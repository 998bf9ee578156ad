package atomicfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// names lists what is in a folder, hidden files too.
func names(t *testing.T, dir string) []string {
	t.Helper()
	e, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var n []string
	for _, x := range e {
		n = append(n, x.Name())
	}
	return n
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestCommit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "model.bin")
	f, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Abort()
	want := bytes.Repeat([]byte("0123456789"), 3*bufferSize/10) // several buffers
	for i := 0; i < len(want); i += 100_001 {
		p := want[i:min(i+100_001, len(want))]
		if n, err := f.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
	}
	if f.Offset() != int64(len(want)) || f.Path() != path {
		t.Errorf("offset %d, path %s", f.Offset(), f.Path())
	}
	// Until Commit there is only the temporary file, in the same folder.
	if n := names(t, dir); len(n) != 1 || !strings.HasPrefix(n[0], ".model.bin.") || !strings.HasSuffix(n[0], ".tmp") {
		t.Errorf("before Commit: %v", n)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if content(t, path) != string(want) {
		t.Error("other bytes than written")
	}
	f.Abort() // as deferred calls do
	if n := names(t, dir); len(n) != 1 || n[0] != "model.bin" {
		t.Errorf("after Commit and Abort: %v", n)
	}
	if err := f.Commit(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("second Commit: %v", err)
	}
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("Write after Commit succeeds")
	}
}

func TestAbort(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(make([]byte, 2*bufferSize)); err != nil {
		t.Fatal(err)
	}
	f.Abort()
	f.Abort()
	if n := names(t, dir); len(n) != 1 || content(t, path) != "old" {
		t.Errorf("after Abort: %v", n)
	}
	if err := f.Commit(); err == nil {
		t.Error("Commit after Abort succeeds")
	}
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("Write after Abort succeeds")
	}
}

// TestReplace: an existing file shows its old bytes until Commit, then the new.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	for _, text := range []string{"first", "second"} {
		before := ""
		if b, err := os.ReadFile(path); err == nil {
			before = string(b)
		}
		f, err := Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(path); string(b) != before {
			t.Errorf("before Commit the file holds %q, was %q", b, before)
		}
		if err := f.Commit(); err != nil {
			t.Fatal(err)
		}
		if content(t, path) != text {
			t.Errorf("holds %q, want %q", content(t, path), text)
		}
	}
	// Two writers of one name: each has a temporary file of its own, the last wins.
	a, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	a.Write([]byte("a"))
	b.Write([]byte("b"))
	if err := errors.Join(a.Commit(), b.Commit()); err != nil {
		t.Fatal(err)
	}
	if content(t, path) != "b" || len(names(t, dir)) != 1 {
		t.Errorf("holds %q; folder %v", content(t, path), names(t, dir))
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub*?", "x[1]*.json") // nothing in a name is a pattern
	if err := WriteFile(path, []byte("{}")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("folder that does not exist: %v", err)
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Skipf("this system has no such names: %v", err)
	}
	if err := WriteFile(path, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if content(t, path) != "{}" || len(names(t, filepath.Dir(path))) != 1 {
		t.Errorf("folder: %v", names(t, filepath.Dir(path)))
	}
	// A path without a folder means the current one.
	t.Chdir(dir)
	if err := WriteFile("plain", nil); err != nil {
		t.Fatal(err)
	}
	if content(t, "plain") != "" {
		t.Error("not empty")
	}
}

// TestRenameFails: the final name is a folder that is not empty.
func TestRenameFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	if err := os.MkdirAll(filepath.Join(path, "y"), 0o700); err != nil {
		t.Fatal(err)
	}
	err := WriteFile(path, []byte("z"))
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
	if n := names(t, dir); len(n) != 1 {
		t.Errorf("left: %v", n)
	}
}
