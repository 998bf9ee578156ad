package format

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// OpenRegular opens a file to read, and tells what the system says of it. What is neither a
// regular file nor a link to one (a folder, a named pipe, a device) is ErrBroken.
func OpenRegular(path string) (*os.File, fs.FileInfo, error) {
	// Looked at before it is opened: opening a named pipe would wait for a writer.
	st, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, nil, &Error{Path: path, Offset: -1, Kind: ErrBroken, Err: errors.New("not a regular file")}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	if st, err = f.Stat(); err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, st, nil
}

// ReadFile returns the content of a regular file, see OpenRegular. A file of more than limit
// bytes is ErrBroken.
func ReadFile(path string, limit int64) ([]byte, error) {
	f, _, err := OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if int64(len(raw)) > limit {
		return nil, &Error{Path: path, Offset: -1, Kind: ErrBroken, Err: fmt.Errorf("larger than %d bytes", limit)}
	}
	return raw, nil
}
