// Package hub reads models from the Hugging Face hub, or a mirror of it, into the cache that
// Python's huggingface_hub uses too.
//
// Downloads go on where they were broken off; every file is checked against its digest: SHA-256
// for large files, Git's SHA-1 for others. What a server says is not trusted: names of files stay
// inside of the cache, and every count and size has a limit.
package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// DefaultEndpoint is the hub's address.
const DefaultEndpoint = "https://huggingface.co"

// A Client reads from one hub. Its methods are safe for concurrent use.
type Client struct {
	Endpoint string // without a slash at the end
	Token    string // for gated and private models; "" for none
	Cache    string // folder, see CacheDir
	Offline  bool   // nothing but the cache is used
	Agent    string // how the program names itself
	// Progress, if set, is told what step is under way, and how much of it is done, in MiB.
	Progress func(step string, done, total int)
	// Notice, if set, is told what is worth knowing and is no error.
	Notice func(text string)

	http *http.Client
	// wait stops between tries; tests do not.
	wait func(ctx context.Context, d time.Duration) error
	// free is freeSpace; tests have disks that are full.
	free func(dir string) (bytes int64, known bool)
}

// FromEnv makes a client as the environment asks for: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, and
// what CacheDir reads.
func FromEnv(getenv func(string) string, agent string) (*Client, error) {
	cache, err := CacheDir(getenv)
	if err != nil {
		return nil, err
	}
	endpoint := strings.TrimRight(getenv("HF_ENDPOINT"), "/")
	if endpoint == "" {
		endpoint = DefaultEndpoint
	}
	c := &Client{Endpoint: endpoint, Token: strings.TrimSpace(getenv("HF_TOKEN")), Cache: cache, Agent: agent}
	switch strings.ToLower(getenv("HF_HUB_OFFLINE")) {
	case "1", "true", "yes", "on":
		c.Offline = true
	}
	return c, c.prepare()
}

// prepare checks the endpoint and fills in what is not exported.
func (c *Client) prepare() error {
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("HF_ENDPOINT %q is not an address such as %s", c.Endpoint, DefaultEndpoint)
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && c.Token != "" && u.Hostname() != "localhost" &&
		(ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("HF_ENDPOINT %s is not encrypted: HF_TOKEN is not sent there", c.Endpoint)
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = time.Minute
	c.http = &http.Client{Transport: t, CheckRedirect: c.redirect}
	if c.wait == nil {
		c.wait = pause
	}
	if c.free == nil {
		c.free = freeSpace
	}
	return nil
}

// redirect follows where the hub sends: to other names of a repository and to the store of large
// files. The token goes to no other host, and nothing goes from https to http.
func (c *Client) redirect(req *http.Request, via []*http.Request) error {
	if len(via) > 10 {
		return errors.New("the server redirects more than ten times")
	}
	first := via[0].URL
	if first.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("the server redirects to %s, which is not encrypted", req.URL.Host)
	}
	if req.URL.Host != first.Host {
		req.Header.Del("Authorization")
	} else if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// An Error is what the hub answered instead of what was asked for.
type Error struct {
	Status int    // of HTTP
	Code   string // of the hub, such as GatedRepo; may be ""
	Text   string
}

func (e *Error) Error() string { return e.Text }

// maxTries is how often a request is made that may succeed later, maxWait how long is waited
// before the next one at most.
const (
	maxTries = 5
	maxDials = 3 // where no connection comes about
	maxWait  = 2 * time.Minute
)

// errUnreachable says that no answer came.
var errUnreachable = errors.New("the hub cannot be reached")

var plain = regexp.MustCompile(`[^ -~]+`)

// refusal describes an answer that is none.
func refusal(what string, resp *http.Response) *Error {
	e := &Error{Status: resp.StatusCode, Code: resp.Header.Get("X-Error-Code")}
	text := ""
	switch {
	case e.Code == "GatedRepo":
		text = "access to this model is granted on its page; ask for it there, then set HF_TOKEN"
	case e.Code == "EntryNotFound":
		text = "there is no such file"
	case e.Code == "RevisionNotFound":
		text = "there is no such revision"
	case e.Status == http.StatusUnauthorized || e.Code == "RepoNotFound":
		text = "there is no such model, or it is private: set HF_TOKEN to a token that may read it"
	case e.Status == http.StatusForbidden:
		text = "the token in HF_TOKEN may not read this"
	case e.Status == http.StatusNotFound:
		text = "not found"
	case e.Status == http.StatusTooManyRequests:
		text = "too many requests; wait some minutes, or set HF_TOKEN, which raises the limit"
	default:
		text = http.StatusText(e.Status)
	}
	if m := resp.Header.Get("X-Error-Message"); m != "" && len(m) < 500 {
		text += " (" + plain.ReplaceAllString(m, "?") + ")"
	}
	e.Text = fmt.Sprintf("%s: %s (HTTP %d)", what, text, e.Status)
	return e
}

// retryAfter is how long a server asks to wait; tries counts from 1.
func retryAfter(resp *http.Response, tries int) time.Duration {
	d := time.Second << (tries - 1)
	if resp != nil {
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 && s < 1<<20 {
			d = time.Duration(s) * time.Second
		}
	}
	return min(d, maxWait)
}

// get asks for an address, again where that may help, and returns an answer with status 200 or 206.
func (c *Client) get(ctx context.Context, what, address string, header http.Header) (*http.Response, error) {
	for tries := 1; ; tries++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, err
		}
		for k, v := range header {
			req.Header[k] = v
		}
		req.Header.Set("User-Agent", c.Agent)
		req.Header.Set("Accept-Encoding", "identity") // sizes and ranges are of the file itself
		if c.Token != "" {
			req.Header.Set("Authorization", "Bearer "+c.Token)
		}
		resp, err := c.http.Do(req)
		switch {
		case err != nil:
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			err = fmt.Errorf("%s: %w: %w", what, errUnreachable, stripURL(err))
			if tries == maxDials {
				return nil, err
			}
		case resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent:
			return resp, nil
		default:
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16)) // so that the connection can be used again
			resp.Body.Close()
			err = refusal(what, resp)
			if s := resp.StatusCode; s != http.StatusTooManyRequests && s != http.StatusRequestTimeout && s < 500 {
				return nil, err
			}
		}
		if tries == maxTries {
			return nil, err
		}
		if err := c.wait(ctx, retryAfter(resp, tries)); err != nil {
			return nil, err
		}
	}
}

// stripURL takes the address out of an error: those of the store of large files have a signature.
func stripURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// Limits of what the hub answers.
const (
	maxAnswer = 64 << 20
	maxFiles  = 100_000
)

// info is what the hub tells of a revision.
type info struct {
	SHA      string `json:"sha"`
	Siblings []struct {
		Name   string `json:"rfilename"`
		Size   *int64 `json:"size"`
		BlobID string `json:"blobId"`
		LFS    *struct {
			SHA256 string `json:"sha256"`
			Size   int64  `json:"size"`
		} `json:"lfs"`
	} `json:"siblings"`
}

// part asks for the bytes of a file from an offset on, with a header Range ("" for the whole file),
// and returns them with the offset at which they begin: 0 where the server knows no ranges.
func (c *Client) part(ctx context.Context, what, address string, from int64, bytes string) (
	body io.ReadCloser, at int64, err error) {
	header := http.Header{}
	if bytes != "" {
		header.Set("Range", bytes)
	}
	resp, err := c.get(ctx, what, address, header)
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusPartialContent {
		return resp.Body, 0, nil
	}
	if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &at); err != nil || at != from {
		resp.Body.Close()
		return nil, 0, fmt.Errorf("%s: the server sent another part than it was asked for", what)
	}
	return resp.Body, at, nil
}

// List asks for the commit that a revision is at, and for its files.
func (c *Client) List(ctx context.Context, r Ref) (at string, files []File, err error) {
	address := c.Endpoint + "/api/models/" + r.Repo + "/revision/" + url.PathEscape(r.revision()) + "?blobs=true"
	resp, err := c.get(ctx, r.String(), address, nil)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", r, err)
	}
	var x info
	if len(raw) > maxAnswer || json.Unmarshal(raw, &x) != nil || !commit.MatchString(x.SHA) || len(x.Siblings) > maxFiles {
		return "", nil, fmt.Errorf("%s: %s does not answer as the hub does", r, c.Endpoint)
	}
	for _, s := range x.Siblings {
		f := File{Name: s.Name, Size: -1, ETag: s.BlobID}
		if !safeName(f.Name) {
			return "", nil, fmt.Errorf("%s: %q is not a name that a file may have", r, f.Name)
		}
		if s.Size != nil {
			f.Size = *s.Size
		}
		if s.LFS != nil {
			f.ETag, f.Size = s.LFS.SHA256, s.LFS.Size
		}
		if f.ETag != "" && !digest.MatchString(f.ETag) {
			return "", nil, fmt.Errorf("%s: %s has the digest %q, which is none", r, f.Name, f.ETag)
		}
		files = append(files, f)
	}
	return x.SHA, files, nil
}

// digest is an etag that says what is in a file.
var digest = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// address is where a file is.
func (c *Client) address(repo, at, name string) string {
	parts := strings.Split(name, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return c.Endpoint + "/" + repo + "/resolve/" + at + "/" + strings.Join(parts, "/")
}
