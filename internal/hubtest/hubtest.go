// Package hubtest is a server for tests that imitates the Hugging Face hub: the list of a
// revision's files, redirects to a store of large files, etags, ranges, errors with the hub's codes,
// and faults on demand.
package hubtest

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"
)

// Commit is the commit of every repository's main branch.
const Commit = "0123456789abcdef0123456789abcdef01234567"

// A Hub is a server with repositories. Change its fields before it is asked.
type Hub struct {
	*httptest.Server
	store *httptest.Server // of large files, another host

	mu    sync.Mutex
	repos map[string]map[string][]byte
	large map[string]bool // by repo/file
	// Token, if set, is needed to read anything.
	Token string
	// Gated answers as for a model whose terms were not accepted.
	Gated bool
	// BreakAfter ends each connection of the store after so many bytes; 0 never.
	BreakAfter int
	// Breaks counts down the connections that are broken; -1 for all.
	Breaks int
	// Busy counts down the requests that are answered with 429.
	Busy int
	// Corrupt changes a byte of what the store sends.
	Corrupt bool
	// NoRanges sends whole files whatever is asked for.
	NoRanges bool
	// NoBlobs leaves sizes and digests out of the list.
	NoBlobs bool
	// Evil adds a file with this name to every list.
	Evil string
	// Requests are what was asked for: method, path and range.
	Requests []string
	// StoreAuth says that the store was sent a token, which it must not be.
	StoreAuth bool
	// Sent counts the bytes of contents that were sent.
	Sent int
}

// New starts a hub. It ends with the test.
func New(t testing.TB) *Hub {
	h := &Hub{repos: map[string]map[string][]byte{}, large: map[string]bool{}}
	h.Server = httptest.NewServer(http.HandlerFunc(h.serve))
	h.store = httptest.NewServer(http.HandlerFunc(h.serveStore))
	t.Cleanup(h.Close)
	t.Cleanup(h.store.Close)
	return h
}

// Add puts a file into a repository; large files lie in the store.
func (h *Hub) Add(repo, name string, data []byte, large bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.repos[repo] == nil {
		h.repos[repo] = map[string][]byte{}
	}
	h.repos[repo][name] = data
	h.large[repo+"/"+name] = large
}

// AddFolder puts the files of a folder into a repository, weights into the store.
func (h *Hub) AddFolder(t testing.TB, repo, dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		ext := filepath.Ext(e.Name())
		h.Add(repo, e.Name(), data, ext == ".safetensors" || ext == ".gguf")
	}
}

// ETag is what the hub calls a file's contents.
func ETag(data []byte, large bool) string {
	if large {
		s := sha256.Sum256(data)
		return hex.EncodeToString(s[:])
	}
	s := sha1.Sum(append([]byte(fmt.Sprintf("blob %d\x00", len(data))), data...))
	return hex.EncodeToString(s[:])
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("X-Error-Code", code)
	w.Header().Set("X-Error-Message", message)
	w.WriteHeader(status)
}

// enter notes a request and answers it if it may not be read.
func (h *Hub) enter(w http.ResponseWriter, r *http.Request) bool {
	h.Requests = append(h.Requests, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Range")))
	switch {
	case h.Busy > 0:
		h.Busy--
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusTooManyRequests)
	case h.Gated:
		refuse(w, http.StatusForbidden, "GatedRepo", "Access to this model is restricted")
	case h.Token != "" && r.Header.Get("Authorization") != "Bearer "+h.Token:
		refuse(w, http.StatusUnauthorized, "RepoNotFound", "Repository not found")
	default:
		return true
	}
	return false
}

func (h *Hub) serve(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.enter(w, r) {
		return
	}
	path := strings.TrimPrefix(r.URL.EscapedPath(), "/")
	if rest, ok := strings.CutPrefix(path, "api/models/"); ok {
		repo, rev, _ := strings.Cut(rest, "/revision/")
		h.list(w, repo, rev)
		return
	}
	repo, rest, _ := strings.Cut(path, "/resolve/")
	rev, rest, _ := strings.Cut(rest, "/")
	ok := rev == Commit || rev == "main"
	name, _ := url.PathUnescape(rest)
	data, there := h.repos[repo][name]
	if !ok || !there {
		refuse(w, http.StatusNotFound, "EntryNotFound", "Entry not found")
		return
	}
	large := h.large[repo+"/"+name]
	w.Header().Set("X-Repo-Commit", Commit)
	if !large {
		w.Header().Set("ETag", `"`+ETag(data, false)+`"`)
		h.send(w, r, data)
		return
	}
	w.Header().Set("ETag", `"not-the-digest"`)
	w.Header().Set("X-Linked-Etag", `"`+ETag(data, true)+`"`)
	w.Header().Set("X-Linked-Size", fmt.Sprint(len(data)))
	http.Redirect(w, r, h.store.URL+"/"+repo+"/"+name+"?signature=secret", http.StatusFound)
}

func (h *Hub) list(w http.ResponseWriter, repo, rev string) {
	files, ok := h.repos[repo]
	if !ok {
		refuse(w, http.StatusUnauthorized, "RepoNotFound", "Repository not found")
		return
	}
	if rev != "main" && rev != "refs%2Fpr%2F1" && rev != Commit {
		refuse(w, http.StatusNotFound, "RevisionNotFound", "Invalid rev id: "+rev)
		return
	}
	type object = map[string]any
	var siblings []object
	var names []string
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		s := object{"rfilename": n}
		if !h.NoBlobs {
			s["size"], s["blobId"] = len(files[n]), ETag(files[n], false)
			if h.large[repo+"/"+n] {
				s["lfs"] = object{"sha256": ETag(files[n], true), "size": len(files[n]), "pointerSize": 134}
			}
		}
		siblings = append(siblings, s)
	}
	if h.Evil != "" {
		siblings = append(siblings, object{"rfilename": h.Evil, "size": 1, "blobId": ETag(nil, false)})
	}
	_ = json.NewEncoder(w).Encode(object{"id": repo, "sha": Commit, "siblings": siblings})
}

func (h *Hub) serveStore(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Requests = append(h.Requests, strings.TrimSpace("STORE "+r.Method+" "+r.URL.Path+" "+r.Header.Get("Range")))
	h.StoreAuth = h.StoreAuth || r.Header.Get("Authorization") != ""
	parts := strings.SplitN(strings.TrimPrefix(r.URL.Path, "/"), "/", 3)
	if len(parts) != 3 || r.URL.Query().Get("signature") != "secret" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	data := h.repos[parts[0]+"/"+parts[1]][parts[2]]
	if h.Corrupt {
		data = bytes.Clone(data)
		data[len(data)/2] ^= 1
	}
	h.send(w, r, data)
}

// send serves a part of data, and breaks off where it was told to.
func (h *Hub) send(w http.ResponseWriter, r *http.Request, data []byte) {
	if h.NoRanges {
		r.Header.Del("Range")
	}
	c := &counting{ResponseWriter: w, h: h}
	if h.BreakAfter > 0 && h.Breaks != 0 {
		h.Breaks--
		c.left = h.BreakAfter
	}
	http.ServeContent(c, r, "", time.Time{}, bytes.NewReader(data))
}

// counting counts what is sent, and breaks the connection after left bytes; 0 never.
type counting struct {
	http.ResponseWriter
	h    *Hub
	left int
}

func (c *counting) Write(p []byte) (int, error) {
	if c.left > 0 && len(p) >= c.left {
		n, _ := c.ResponseWriter.Write(p[:c.left])
		c.h.Sent += n
		if f, ok := c.ResponseWriter.(http.Flusher); ok {
			f.Flush()
		}
		panic(http.ErrAbortHandler)
	}
	if c.left > 0 {
		c.left -= len(p)
	}
	n, err := c.ResponseWriter.Write(p)
	c.h.Sent += n
	return n, err
}
