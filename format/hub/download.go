package hub

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// Fetch brings a model into the cache, unless it is there, and returns the path to open: a folder,
// or a GGUF file. With Offline, and where the hub cannot be reached, what is in the cache is used.
func (c *Client) Fetch(ctx context.Context, r Ref) (string, error) {
	m, err := c.chosen(ctx, r)
	if err != nil {
		return "", err
	}
	if !m.here {
		if err := c.fetch(ctx, r, m.at, m.files); err != nil {
			return "", err
		}
		if err := c.remember(r, m.at); err != nil {
			return "", err
		}
	}
	return filepath.Join(c.snapshot(r.Repo, m.at), filepath.FromSlash(m.main)), nil
}

// A choice is what Choose picks of a model.
type choice struct {
	at    string // commit
	files []File
	main  string // the file to open
	here  bool   // it is that of the cache, and the hub was not asked
}

// chosen asks the hub for a model, or with Offline, and where the hub cannot be reached, the cache.
func (c *Client) chosen(ctx context.Context, r Ref) (*choice, error) {
	if c.Offline {
		m, err := c.kept(r)
		if err != nil {
			return nil, fmt.Errorf("%w; HF_HUB_OFFLINE is set, so it is not downloaded", err)
		}
		return m, nil
	}
	at, all, err := c.List(ctx, r)
	if errors.Is(err, errUnreachable) && ctx.Err() == nil {
		if m, missing := c.kept(r); missing == nil {
			c.note("%v; what is in the cache is used", err)
			return m, nil
		}
	}
	if err != nil {
		return nil, err
	}
	files, main, err := Choose(r, all)
	return &choice{at: at, files: files, main: main}, err
}

func (c *Client) note(format string, args ...any) {
	if c.Notice != nil {
		c.Notice(fmt.Sprintf(format, args...))
	}
}

// kept chooses among the files of a model that the cache has.
func (c *Client) kept(r Ref) (*choice, error) {
	missing := fmt.Errorf("%s is not in the cache (%s)", r, c.Cache)
	at := c.known(r)
	if at == "" {
		return nil, missing
	}
	dir := c.snapshot(r.Repo, at)
	names, err := local(dir)
	if err != nil {
		return nil, err
	}
	var all []File
	for _, n := range names {
		st, err := os.Stat(filepath.Join(dir, filepath.FromSlash(n)))
		if err != nil {
			continue // a link without its file
		}
		all = append(all, File{Name: n, Size: st.Size()})
	}
	files, main, err := Choose(r, all)
	if err != nil {
		return nil, missing
	}
	if lacks := missingShard(files); lacks != "" {
		return nil, fmt.Errorf("%w: %s is missing", missing, lacks)
	}
	return &choice{at, files, main, true}, nil
}

// fetch downloads the files that are not there.
func (c *Client) fetch(ctx context.Context, r Ref, at string, files []File) error {
	blobs := filepath.Join(c.repoDir(r.Repo), "blobs")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	var need, total int64
	var todo []File
	for _, f := range files {
		if _, err := os.Stat(filepath.Join(c.snapshot(r.Repo, at), filepath.FromSlash(f.Name))); err == nil {
			continue
		}
		todo = append(todo, f)
		total += max(0, f.Size)
		need += max(0, f.Size)
		if st, err := os.Stat(filepath.Join(blobs, f.ETag+".incomplete")); err == nil && f.ETag != "" {
			need -= min(st.Size(), max(0, f.Size))
		}
	}
	if free, ok := c.free(blobs); ok && need > free {
		return fmt.Errorf("%s: %d MiB are to be downloaded, and %s has %d MiB left; set HF_HOME to a larger disk", r,
			need>>20, blobs, free>>20)
	}
	m := &meter{c: c, step: "downloading " + r.Repo + ", MiB", total: total}
	for _, f := range todo {
		if err := c.file(ctx, r, at, f, m); err != nil {
			return err
		}
	}
	m.finish()
	return nil
}

// meter tells how much of all files is there.
type meter struct {
	c           *Client
	step        string
	done, total int64
	told        bool
}

func (m *meter) add(n int64) {
	m.done += n
	if m.c.Progress != nil && m.total > 0 && m.done < m.total {
		m.told = true
		m.c.Progress(m.step, int(m.done>>20), int(m.total>>20)+1)
	}
}

func (m *meter) finish() {
	if m.told {
		m.c.Progress(m.step, int(m.total>>20)+1, int(m.total>>20)+1)
	}
}

// file downloads one file and links it into the snapshot.
func (c *Client) file(ctx context.Context, r Ref, at string, f File, m *meter) error {
	what := r.String() + "/" + f.Name
	if f.ETag == "" {
		var err error
		if f, err = c.head(ctx, what, r, at, f.Name); err != nil {
			return err
		}
	}
	repo := c.repoDir(r.Repo)
	blob := filepath.Join(repo, "blobs", f.ETag)
	file := filepath.Join(c.snapshot(r.Repo, at), filepath.FromSlash(f.Name))
	lock, err := takeLock(ctx, filepath.Join(c.Cache, ".locks", folderName(r.Repo), f.ETag+".lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := os.Stat(blob); errors.Is(err, fs.ErrNotExist) {
		if err := c.blob(ctx, what, c.address(r.Repo, at, f.Name), f, blob, m); err != nil {
			return err
		}
	}
	return link(blob, file)
}

// head asks for what the list of files did not say.
func (c *Client) head(ctx context.Context, what string, r Ref, at, name string) (File, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, c.address(r.Repo, at, name), nil)
	if err != nil {
		return File{}, err
	}
	req.Header.Set("User-Agent", c.Agent)
	req.Header.Set("Accept-Encoding", "identity")
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	// The digest stands in the hub's own answer, not in that of the store it sends to.
	once := *c.http
	once.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := once.Do(req)
	if err != nil {
		return File{}, fmt.Errorf("%s: %w", what, stripURL(err))
	}
	resp.Body.Close()
	if resp.StatusCode >= 400 {
		return File{}, refusal(what, resp)
	}
	etag := resp.Header.Get("X-Linked-Etag")
	if etag == "" {
		etag = resp.Header.Get("ETag")
	}
	f := File{Name: name, Size: resp.ContentLength, ETag: strings.Trim(strings.TrimPrefix(etag, "W/"), `"`)}
	if s := resp.Header.Get("X-Linked-Size"); s != "" {
		if _, err := fmt.Sscan(s, &f.Size); err != nil {
			f.Size = -1
		}
	}
	if !digest.MatchString(f.ETag) {
		return File{}, fmt.Errorf("%s: the server gives no digest to check the file with", what)
	}
	return f, nil
}

// hasher returns what computes a file's etag.
func hasher(etag string, size int64) hash.Hash {
	if len(etag) == 64 {
		return sha256.New()
	}
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", size) // Git's name of a file
	return h
}

// blob downloads into the name with .incomplete, from where that ends, and gives it its name once
// its digest is right.
func (c *Client) blob(ctx context.Context, what, address string, f File, path string, m *meter) error {
	if f.Size < 0 {
		return fmt.Errorf("%s: the server does not say how long the file is", what)
	}
	part := path + ".incomplete"
	out, err := os.OpenFile(part, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	at, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if at > f.Size {
		at = 0
	}
	m.add(at)
	for failures := 0; at < f.Size; {
		now, err := c.continued(ctx, what, address, out, at, f.Size, m)
		if now > at {
			failures = 0
		}
		if at = now; err == nil {
			continue
		}
		var refused *Error
		if failures++; ctx.Err() != nil || errors.As(err, &refused) || failures == maxTries || errors.Is(err, errWrite) {
			return err
		}
		if err := c.wait(ctx, retryAfter(nil, failures)); err != nil {
			return err
		}
	}
	if err := out.Truncate(f.Size); err != nil {
		return err
	}
	sum, err := c.digestOf(ctx, out, f)
	if err != nil {
		return err
	}
	if sum != f.ETag {
		out.Close()
		os.Remove(part)
		return fmt.Errorf("%s: what was downloaded has the digest %s, expected %s; it was removed: try again", what, sum, f.ETag)
	}
	if err := out.Sync(); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Rename(part, path)
}

// errWrite says that the disk, not the network, is at fault.
var errWrite = errors.New("cannot be written")

// continued reads the file from an offset on until it ends or the connection does, and returns the
// offset up to which it is there.
func (c *Client) continued(ctx context.Context, what, address string, out *os.File, at, size int64,
	m *meter) (int64, error) {
	bytes := ""
	if at > 0 {
		bytes = fmt.Sprintf("bytes=%d-", at)
	}
	body, from, err := c.part(ctx, what, address, at, bytes)
	if err != nil {
		return at, err
	}
	defer body.Close()
	if from != at {
		m.add(-at)
		at = 0 // the server knows no ranges: all of it comes again
	}
	buf := make([]byte, 1<<20)
	for at < size {
		k, err := body.Read(buf[:min(int64(len(buf)), size-at)])
		if k > 0 {
			if _, err := out.WriteAt(buf[:k], at); err != nil {
				return at, fmt.Errorf("%w: %w", errWrite, err)
			}
			at += int64(k)
			m.add(int64(k))
		}
		if err != nil && at < size {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return at, fmt.Errorf("%s: %w", what, err)
		}
	}
	return at, nil
}

// digestOf computes the etag of what was written.
func (c *Client) digestOf(ctx context.Context, out *os.File, f File) (string, error) {
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	h := hasher(f.ETag, f.Size)
	for {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if _, err := io.CopyN(h, out, 64<<20); errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), nil
		} else if err != nil {
			return "", err
		}
	}
}
