package format

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := os.WriteFile(path, []byte("four"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadFile(path, 4); err != nil || string(b) != "four" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := ReadFile(path, 3); !errors.Is(err, ErrBroken) ||
		!strings.Contains(err.Error(), path+": larger than 3 bytes") {
		t.Errorf("a file over the limit: %v", err)
	}
	if _, err := ReadFile(dir, 4); !errors.Is(err, ErrBroken) ||
		!strings.Contains(err.Error(), dir+": not a regular file") {
		t.Errorf("a folder: %v", err)
	}
	if _, err := ReadFile(path+"b", 4); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrBroken) {
		t.Errorf("a file that is not there: %v", err)
	}
	f, st, err := OpenRegular(path)
	if err != nil || st.Size() != 4 {
		t.Fatal(st, err)
	}
	f.Close()
}
