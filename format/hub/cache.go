package hub

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/phaseconv/phaseconv/format/atomicfile"
)

// CacheDir is where Python's huggingface_hub keeps what it downloads, for an environment such as
// os.Getenv: HF_HUB_CACHE, or hub below HF_HOME, XDG_CACHE_HOME/huggingface or ~/.cache/huggingface.
func CacheDir(getenv func(string) string) (string, error) {
	if dir := getenv("HF_HUB_CACHE"); dir != "" {
		return dir, nil
	}
	home := getenv("HF_HOME")
	if home == "" {
		cache := getenv("XDG_CACHE_HOME")
		if cache == "" {
			user, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("no folder for the hub's cache; set HF_HOME: %w", err)
			}
			cache = filepath.Join(user, ".cache")
		}
		home = filepath.Join(cache, "huggingface")
	}
	return filepath.Join(home, "hub"), nil
}

// repoDir is the folder of a repository in the cache:
//
//	models--ORG--NAME/blobs/ETAG                    contents, by etag
//	models--ORG--NAME/refs/REVISION                 the commit that a branch or tag was at
//	models--ORG--NAME/snapshots/COMMIT/FILE         links to blobs
//	.locks/models--ORG--NAME/ETAG.lock              held while a blob is written
func (c *Client) repoDir(repo string) string {
	return filepath.Join(c.Cache, folderName(repo))
}

func folderName(repo string) string { return "models--" + strings.ReplaceAll(repo, "/", "--") }

func (c *Client) snapshot(repo, commit string) string {
	return filepath.Join(c.repoDir(repo), "snapshots", commit)
}

// known returns the commit that a revision had when it was last asked for, "" for none.
func (c *Client) known(r Ref) string {
	if commit.MatchString(r.Revision) {
		return r.Revision
	}
	raw, err := os.ReadFile(filepath.Join(c.repoDir(r.Repo), "refs", filepath.FromSlash(r.revision())))
	if s := strings.TrimSpace(string(raw)); err == nil && commit.MatchString(s) {
		return s
	}
	return ""
}

// remember stores the commit of a revision.
func (c *Client) remember(r Ref, at string) error {
	if r.Revision == at || c.known(r) == at {
		return nil
	}
	path := filepath.Join(c.repoDir(r.Repo), "refs", filepath.FromSlash(r.revision()))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.WriteFile(path, []byte(at))
}

// link makes a file of a snapshot a link to its blob, relative, so that the cache can be moved;
// where the system has no links the blob itself becomes the file, as huggingface_hub does.
func link(blob, file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	to, err := filepath.Rel(filepath.Dir(file), blob)
	if err != nil {
		return err
	}
	if now, err := os.Readlink(file); err == nil && now == to {
		return nil
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(to, file); err != nil {
		return os.Rename(blob, file)
	}
	return nil
}

// local lists the files of a snapshot, with slashes.
func local(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if _, err := os.Stat(path); err != nil {
			return nil // a link to a blob that is gone
		}
		name, err := filepath.Rel(dir, path)
		out = append(out, filepath.ToSlash(name))
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return out, err
}
