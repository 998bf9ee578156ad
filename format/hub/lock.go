package hub

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"
)

// errHeld: another process holds the lock.
var errHeld = errors.New("held by another process")

// takeLock takes a lock that Python's huggingface_hub takes too, and waits for it. It ends with the
// process, or when the file is closed. The file stays: removing it would race.
func takeLock(ctx context.Context, path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		if err = lockFile(f); err == nil {
			return f, nil
		}
		f.Close()
		if !errors.Is(err, errHeld) {
			return nil, err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return nil, err
		}
	}
}
