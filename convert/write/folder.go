package write

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A Folder is made under a hidden name beside its final one, so that the final
// name only ever shows a complete artifact.
type Folder struct {
	Path   string // where it is made
	out    string
	lock   *os.File
	made   []string // parents that did not exist, outermost first
	notice func(string)
}

// partial says whether name is that of a folder in which out's is being made.
func partial(name, out string) bool {
	return strings.HasPrefix(name, "."+filepath.Base(out)+".") && strings.HasSuffix(name, ".partial")
}

// NewFolder begins out. Folders of runs that were killed are removed; a run that
// is still at work on out is not disturbed, and this one refuses.
func NewFolder(out string, notice func(string)) (*Folder, error) {
	f := &Folder{out: target(filepath.Clean(out)), notice: notice}
	parent := filepath.Dir(f.out)
	ok := false
	defer func() {
		if !ok {
			f.Abort()
		}
	}()
	if err := f.makeParents(parent); err != nil {
		return nil, err
	}
	if err := f.removeStale(parent); err != nil {
		return nil, err
	}
	if err := f.make(parent); err != nil {
		return nil, err
	}
	if err := os.Chmod(f.Path, 0o755); err != nil {
		return nil, err
	}
	ok = true
	return f, nil
}

// target returns the folder that a link leads to: who links to another disk wants the files there.
// A link to nothing stays as it is; Commit refuses it.
func target(out string) string {
	if to, err := filepath.EvalSymlinks(out); err == nil {
		return to
	}
	return out
}

// make makes the folder and takes its lock. Another run that looks for stale
// folders may find it before it is locked, and remove it: then it is made again.
func (f *Folder) make(parent string) error {
	for try := 0; ; try++ {
		var err error
		if f.Path, err = os.MkdirTemp(parent, "."+filepath.Base(f.out)+".*.partial"); err != nil {
			return err
		}
		f.lock, err = lockFolder(f.Path)
		if errors.Is(err, errNoLocks) {
			return nil
		}
		if err == nil {
			locked, err1 := f.lock.Stat()
			there, err2 := os.Stat(f.Path)
			if err1 == nil && err2 == nil && os.SameFile(locked, there) {
				return nil
			}
			f.lock.Close()
			f.lock, err = nil, errLocked
		}
		if try == 10 {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
}

// makeParents is os.MkdirAll that remembers what it made.
func (f *Folder) makeParents(dir string) error {
	var missing []string
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) || d == filepath.Dir(d) {
			break
		}
		missing = append(missing, d)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		switch err := os.Mkdir(missing[i], 0o755); {
		case err == nil:
			f.made = append(f.made, missing[i])
		case !errors.Is(err, fs.ErrExist):
			return err
		}
	}
	// Reports what is in the way, such as a file where a folder should be.
	return os.MkdirAll(dir, 0o755)
}

// removeStale removes what killed runs left. A folder is stale when nobody holds
// its lock, which ends with the process that took it.
func (f *Folder) removeStale(parent string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || !partial(e.Name(), f.out) {
			continue
		}
		path := filepath.Join(parent, e.Name())
		lock, err := lockFolder(path)
		switch {
		case errors.Is(err, errLocked):
			return fmt.Errorf("%s: another conversion to %s is running; wait for it, or name another folder", path, f.out)
		case errors.Is(err, errNoLocks):
			f.say("%s: left by another run; remove it if that run is over", path)
			continue
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return fmt.Errorf("%s: %w", path, err)
		}
		err = os.RemoveAll(path)
		lock.Close()
		if err != nil {
			f.say("%s: left by a run that was killed, and cannot be removed: %v", path, err)
			continue
		}
		f.say("%s: removed; it was left by a run that was killed", path)
	}
	return nil
}

func (f *Folder) say(format string, args ...any) {
	if f.notice != nil {
		f.notice(fmt.Sprintf(format, args...))
	}
}

// Explain makes an error speak of files in the folder by their final names: the hidden ones
// are gone when it is read.
func (f *Folder) Explain(err error) error {
	if err == nil || f.Path == "" || !strings.Contains(err.Error(), f.Path) {
		return err
	}
	return &folderError{strings.ReplaceAll(err.Error(), f.Path, f.out), err}
}

// A folderError is an error with another text.
type folderError struct {
	text string
	err  error
}

func (e *folderError) Error() string { return e.text }
func (e *folderError) Unwrap() error { return e.err }

// Commit gives the folder its final name. An empty folder may stand there.
func (f *Folder) Commit() error {
	if there, err := os.Lstat(f.out); err == nil {
		if !there.IsDir() {
			return fmt.Errorf("%s: something that is no folder was put there meanwhile", f.out)
		}
		if err := os.Remove(f.out); err != nil {
			return err
		}
	}
	if err := os.Rename(f.Path, f.out); err != nil {
		return err
	}
	f.Path, f.made = "", nil
	if f.lock != nil {
		f.lock.Close()
	}
	// Makes the name durable; a file system that cannot is no reason to fail now.
	if d, err := os.Open(filepath.Dir(f.out)); err == nil {
		_ = d.Sync()
		d.Close()
	}
	return nil
}

// Abort removes everything that was made. It does nothing after Commit.
func (f *Folder) Abort() {
	if f.Path != "" {
		os.RemoveAll(f.Path)
	}
	if f.lock != nil {
		f.lock.Close()
	}
	for i := len(f.made) - 1; i >= 0; i-- {
		os.Remove(f.made[i]) // fails where somebody else put something
	}
	f.Path, f.made = "", nil
}

// errLocked: another process holds the lock. errNoLocks: this system has none.
var (
	errLocked  = errors.New("in use by another process")
	errNoLocks = errors.New("no locks on this system")
)
