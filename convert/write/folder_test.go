package write

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestStaleFolders: what killed runs left is removed and said so; the folder of a
// run that is alive, and of other names, stays.
func TestStaleFolders(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out [1]")
	for _, n := range []string{".out [1].123.partial", ".out 1.123.partial", ".other.1.partial"} {
		if err := os.MkdirAll(filepath.Join(dir, n, "sub"), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if l, err := lockFolder(dir); errors.Is(err, errNoLocks) {
		t.Skip("folders cannot be locked here")
	} else if err == nil {
		l.Close()
	}
	var notices []string
	f, err := NewFolder(out, func(s string) { notices = append(notices, s) })
	if err != nil {
		t.Fatal(err)
	}
	if len(notices) != 1 || !strings.Contains(notices[0], ".out [1].123.partial: removed") {
		t.Errorf("notices %q", notices)
	}
	if got := left(t, dir); len(got) != 3 {
		t.Errorf("%v", got)
	}
	// The first is still at work.
	if _, err := NewFolder(out, nil); err == nil || !strings.Contains(err.Error(), "another conversion") {
		t.Errorf("two at a time: %v", err)
	}
	if _, err := os.Stat(f.Path); err != nil {
		t.Error(err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	f.Abort() // does nothing now
	if _, err := os.Stat(out); err != nil {
		t.Error(err)
	}
	if f, err = NewFolder(out, nil); err != nil {
		t.Fatal(err)
	}
	f.Abort()
}

// TestParents: parents that were made go away with a failed run, others stay.
func TestParents(t *testing.T) {
	dir := t.TempDir()
	f, err := NewFolder(filepath.Join(dir, "a", "b", "c", "out"), nil)
	if err != nil {
		t.Fatal(err)
	}
	f.Abort()
	if got := left(t, dir); len(got) != 0 {
		t.Errorf("left %v", got)
	}
	if f, err = NewFolder(filepath.Join(dir, "a", "b", "out"), nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a", "x"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	f.Abort()
	if got := left(t, filepath.Join(dir, "a")); !reflect.DeepEqual(got, []string{"x"}) {
		t.Errorf("left %v", got)
	}
	if _, err := NewFolder(filepath.Join(dir, "a", "x", "out"), nil); err == nil {
		t.Error("a file was taken for a folder")
	}
}

// left lists what is in a folder.
func left(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestLinks: a link to a folder is followed, as it may lead to another disk; what is no folder is not replaced.
func TestLinks(t *testing.T) {
	dir := t.TempDir()
	folder, link, file := filepath.Join(dir, "disk", "real"), filepath.Join(dir, "link"), filepath.Join(dir, "file")
	if err := os.MkdirAll(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(folder, link); err != nil {
		t.Skip("no symbolic links here:", err)
	}
	f, err := NewFolder(link, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.Path, "model"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if got := left(t, dir); len(got) != 2 {
		t.Errorf("the folder is not made beside the one that the link leads to: %v", got)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(link); err != nil || to != folder {
		t.Errorf("the link became %q, %v", to, err)
	}
	if _, err := os.Stat(filepath.Join(folder, "model")); err != nil {
		t.Error(err)
	}
	if f, err = NewFolder(file, nil); err != nil {
		t.Fatal(err)
	}
	defer f.Abort()
	if err := os.WriteFile(file, []byte("mine"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err == nil {
		t.Error("a file that came meanwhile was replaced")
	}
}
