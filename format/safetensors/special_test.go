//go:build unix

package safetensors

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSpecialFiles: what is no regular file is refused at once; opening a named
// pipe would wait for a writer.
func TestSpecialFiles(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo.safetensors")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Skipf("no named pipes here: %v", err)
	}
	for _, path := range []string{dir, fifo, os.DevNull} {
		done := make(chan error, 1)
		go func() { _, err := Open(path); done <- err }()
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "not a regular file") {
				t.Errorf("%s: %v", path, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: Open does not return", path)
		}
	}
	dir2 := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir2, IndexName), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(dir2); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("index is a pipe: %v", err)
	}
}
