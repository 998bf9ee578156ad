//go:build linux

package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestPermissions: a new file gets what the umask allows, no more and no less.
func TestPermissions(t *testing.T) {
	for _, mask := range []int{0o022, 0o077, 0o002} {
		old := syscall.Umask(mask)
		path := filepath.Join(t.TempDir(), "x")
		err := WriteFile(path, []byte("x"))
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := st.Mode(), fs.FileMode(0o666&^mask); got != want {
			t.Errorf("umask %03o: mode %v, want %v", mask, got, want)
		}
	}
}

// onFull returns a File whose bytes go to /dev/full, which fails like a full
// disk. Its temporary name is a link in dir, so that removing it harms nothing.
func onFull(t *testing.T, dir string) *File {
	t.Helper()
	link := filepath.Join(dir, ".x.tmp")
	if err := os.Symlink("/dev/full", link); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(link, os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("no /dev/full: %v", err)
	}
	return newFile(filepath.Join(dir, "x"), f)
}

// TestFullDevice: the error comes back from Write or from Commit, and nothing stays.
func TestFullDevice(t *testing.T) {
	dir := t.TempDir()
	f := onFull(t, dir)
	if _, err := f.Write(make([]byte, 10)); err != nil {
		t.Fatalf("a write into the buffer fails: %v", err)
	}
	if err := f.Commit(); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), f.path) {
		t.Errorf("Commit: %v", err)
	}
	if n := names(t, dir); len(n) != 0 {
		t.Errorf("left: %v", n)
	}

	f = onFull(t, dir)
	_, err := f.Write(make([]byte, 3*bufferSize))
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Write: %v", err)
	}
	// The first error sticks, so a caller that overlooks it cannot commit a hole.
	if _, again := f.Write([]byte("x")); again != err {
		t.Errorf("second Write: %v", again)
	}
	if c := f.Commit(); !errors.Is(c, err) {
		t.Errorf("Commit: %v", c)
	}
	if n := names(t, dir); len(n) != 0 {
		t.Errorf("left: %v", n)
	}
}

// TestSizeLimit runs WriteFile in a process that may write only 64 KiB to a
// file: the real temporary file, a real short write.
func TestSizeLimit(t *testing.T) {
	if dir := os.Getenv("ATOMICFILE_TEST_DIR"); dir != "" {
		signal.Ignore(syscall.SIGXFSZ)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1 << 16, Max: 1 << 16}); err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{1<<16 + 1, 3 * bufferSize} {
			err := WriteFile(filepath.Join(dir, "x"), make([]byte, n))
			if !errors.Is(err, syscall.EFBIG) {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
		if err := WriteFile(filepath.Join(dir, "fits"), make([]byte, 1<<16)); err != nil {
			t.Error(err)
		}
		return
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestSizeLimit$")
	cmd.Env = append(os.Environ(), "ATOMICFILE_TEST_DIR="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := names(t, dir); len(n) != 1 || n[0] != "fits" {
		t.Errorf("left: %v", n)
	}
}
