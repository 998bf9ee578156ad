package hub

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/phaseconv/phaseconv/internal/hubtest"
)

const repo = "org/tiny"

// client returns a client of a hub that does not wait, with the waits that it was asked for.
func client(t *testing.T, h *hubtest.Hub) (*Client, *[]time.Duration) {
	t.Helper()
	c := &Client{Endpoint: h.URL, Cache: t.TempDir(), Agent: "test"}
	var waits []time.Duration
	c.wait = func(ctx context.Context, d time.Duration) error {
		waits = append(waits, d)
		return ctx.Err()
	}
	if err := c.prepare(); err != nil {
		t.Fatal(err)
	}
	return c, &waits
}

func noise(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// model puts a checkpoint of three megabytes into the hub.
func model(h *hubtest.Hub) map[string][]byte {
	files := map[string][]byte{"config.json": []byte("{}"), "tokenizer.json": []byte("{\n}"),
		"model-00001-of-00002.safetensors": noise(2 << 20), "model-00002-of-00002.safetensors": noise(1<<20 + 7)}
	for n, data := range files {
		h.Add(repo, n, data, strings.HasSuffix(n, ".safetensors"))
	}
	h.Add(repo, "original/model.pth", noise(100), true)
	h.Add(repo, "model.onnx", noise(100), true)
	return files
}

func ref(t *testing.T, s string) Ref {
	t.Helper()
	r, err := ParseRef(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// compare holds a folder against the files that should be in it.
func compare(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	names, err := local(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != len(files) {
		t.Errorf("there are %v", names)
	}
	for n, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, n))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d, %v", n, len(got), len(want), err)
		}
	}
}

// TestLayout: what Python's huggingface_hub would find, and that nothing is downloaded twice.
func TestLayout(t *testing.T) {
	h := hubtest.New(t)
	files := model(h)
	c, _ := client(t, h)
	dir, err := c.Fetch(t.Context(), ref(t, repo))
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(c.Cache, "models--org--tiny", "snapshots", hubtest.Commit); dir != want {
		t.Errorf("folder %s, want %s", dir, want)
	}
	compare(t, dir, files)
	main, err := os.ReadFile(filepath.Join(c.Cache, "models--org--tiny", "refs", "main"))
	if err != nil || string(main) != hubtest.Commit {
		t.Errorf("refs/main is %q, %v", main, err)
	}
	for n, data := range files {
		to, err := os.Readlink(filepath.Join(dir, n))
		want := "../../blobs/" + hubtest.ETag(data, strings.HasSuffix(n, ".safetensors"))
		if err != nil || filepath.ToSlash(to) != want {
			t.Errorf("%s is a link to %q, want %q (%v)", n, to, want, err)
		}
	}
	sent := h.Sent
	if _, err := c.Fetch(t.Context(), ref(t, "hf:"+repo+"@"+hubtest.Commit)); err != nil || h.Sent != sent {
		t.Errorf("again: %v, %d more bytes", err, h.Sent-sent)
	}
	if _, err := c.Fetch(t.Context(), ref(t, repo+"@refs/pr/1")); err != nil || h.Sent != sent {
		t.Errorf("another revision at the same commit: %v, %d more bytes", err, h.Sent-sent)
	}
	// Without the network the cache serves, and says what it lacks.
	asked := len(h.Requests)
	c.Offline = true
	if got, err := c.Fetch(t.Context(), ref(t, repo)); err != nil || got != dir {
		t.Errorf("offline: %s, %v", got, err)
	}
	for _, name := range []string{"org/other", repo + "@v2", repo + ":Q4_K_M"} {
		if _, err := c.Fetch(t.Context(), ref(t, name)); err == nil || !strings.Contains(err.Error(), "HF_HUB_OFFLINE") {
			t.Errorf("offline %s: %v", name, err)
		}
	}
	os.Remove(filepath.Join(dir, "model-00002-of-00002.safetensors"))
	if _, err := c.Fetch(t.Context(), ref(t, repo)); err == nil || !strings.Contains(err.Error(), "model-00002-of-00002") {
		t.Errorf("offline with a part: %v", err)
	}
	if len(h.Requests) != asked {
		t.Errorf("offline it asked for %v", h.Requests[asked:])
	}
	// A hub that cannot be reached is no reason to fail when everything is here.
	c.Offline = false
	if _, err := c.Fetch(t.Context(), ref(t, repo)); err != nil {
		t.Fatal(err)
	}
	h.Close()
	noted := ""
	c.Notice = func(s string) { noted = s }
	if got, err := c.Fetch(t.Context(), ref(t, repo)); err != nil || got != dir || noted == "" {
		t.Errorf("unreachable: %s, %v, note %q", got, err, noted)
	}
}

// TestFullDisk: what does not fit is not begun, and what was downloaded before counts.
func TestFullDisk(t *testing.T) {
	h := hubtest.New(t)
	files := model(h)
	c, _ := client(t, h)
	total := 0
	for _, f := range files {
		total += len(f)
	}
	left := int64(total - 1)
	c.free = func(string) (int64, bool) { return left, true }
	if _, err := c.Fetch(t.Context(), ref(t, repo)); err == nil || !strings.Contains(err.Error(), "HF_HOME") {
		t.Fatalf("a full disk: %v", err)
	}
	if h.Sent != 0 {
		t.Errorf("%d bytes were sent to a full disk", h.Sent)
	}
	part := files["model-00001-of-00002.safetensors"]
	blobs := filepath.Join(c.Cache, "models--org--tiny", "blobs")
	if err := os.WriteFile(filepath.Join(blobs, hubtest.ETag(part, true)+".incomplete"), part[:1<<20], 0o644); err != nil {
		t.Fatal(err)
	}
	dir, err := c.Fetch(t.Context(), ref(t, repo))
	if err != nil {
		t.Fatal(err)
	}
	compare(t, dir, files)
}

// TestMissingShard: a shard in the middle is missed as the last one is, in both formats.
func TestMissingShard(t *testing.T) {
	file := func(names ...string) (out []File) {
		for _, n := range names {
			out = append(out, File{Name: n})
		}
		return out
	}
	for _, c := range []struct {
		files []File
		lacks string
	}{
		{file("config.json", "model.safetensors"), ""},
		{file("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"), ""},
		{file("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"), "model-00002-of-00003.safetensors"},
		{file("q/m-Q8_0-00002-of-00002.gguf"), "q/m-Q8_0-00001-of-00002.gguf"},
		{file("m-00001-of-99999.gguf"), "m-00002-of-99999.gguf"},
	} {
		if got := missingShard(c.files); got != c.lacks {
			t.Errorf("%v: %q is missing, want %q", c.files, got, c.lacks)
		}
	}
}

// TestResume: broken connections, and broken runs, are gone on with where they ended.
func TestResume(t *testing.T) {
	h := hubtest.New(t)
	files := model(h)
	h.BreakAfter, h.Breaks = 300_000, -1
	c, waits := client(t, h)
	dir, err := c.Fetch(t.Context(), ref(t, repo))
	if err != nil {
		t.Fatal(err)
	}
	compare(t, dir, files)
	total := 0
	for _, f := range files {
		total += len(f)
	}
	if h.Sent > total+1<<20 || len(*waits) < 5 {
		t.Errorf("%d bytes were sent for %d, %d waits", h.Sent, total, len(*waits))
	}

	// A run that was killed left a part.
	c, _ = client(t, h)
	h.Breaks = 0
	data := files["model-00001-of-00002.safetensors"]
	blobs := filepath.Join(c.Cache, "models--org--tiny", "blobs")
	os.MkdirAll(blobs, 0o755)
	os.WriteFile(filepath.Join(blobs, hubtest.ETag(data, true)+".incomplete"), data[:1<<20], 0o644)
	h.Sent, h.Requests = 0, nil
	if dir, err = c.Fetch(t.Context(), ref(t, repo)); err != nil {
		t.Fatal(err)
	}
	compare(t, dir, files)
	resumed := func(s string) bool { return strings.HasSuffix(s, " bytes=1048576-") }
	if h.Sent != total-1<<20 || !slices.ContainsFunc(h.Requests, resumed) {
		t.Errorf("%d bytes were sent, want %d: %v", h.Sent, total-1<<20, h.Requests)
	}

	// A server without ranges sends all of it again.
	c, _ = client(t, h)
	h.NoRanges, h.BreakAfter, h.Breaks = true, 300_000, 2
	if dir, err = c.Fetch(t.Context(), ref(t, repo)); err != nil {
		t.Fatal(err)
	}
	compare(t, dir, files)
	// One that always breaks off at the same place is given up.
	c, _ = client(t, h)
	h.Breaks = -1
	if _, err = c.Fetch(t.Context(), ref(t, repo)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("always broken: %v", err)
	}
}

// TestDigest: what is not what the hub says does not get a name.
func TestDigest(t *testing.T) {
	h := hubtest.New(t)
	files := model(h)
	h.Corrupt = true
	c, _ := client(t, h)
	_, err := c.Fetch(t.Context(), ref(t, repo))
	if err == nil || !strings.Contains(err.Error(), "digest") {
		t.Fatal(err)
	}
	blobs, _ := os.ReadDir(filepath.Join(c.Cache, "models--org--tiny", "blobs"))
	for _, b := range blobs {
		if len(b.Name()) >= 64 {
			t.Errorf("%s was left", b.Name())
		}
	}
	h.Corrupt = false
	dir, err := c.Fetch(t.Context(), ref(t, repo))
	if err != nil {
		t.Fatal(err)
	}
	compare(t, dir, files)
	// Sizes and digests in headers alone do as well.
	h.NoBlobs = true
	c, _ = client(t, h)
	if dir, err = c.Fetch(t.Context(), ref(t, repo)); err != nil {
		t.Fatal(err)
	}
	compare(t, dir, files)
}

func TestRefusals(t *testing.T) {
	h := hubtest.New(t)
	model(h)
	c, waits := client(t, h)
	h.Busy = 2
	asked := []time.Duration{7 * time.Second, 7 * time.Second}
	if _, err := c.Fetch(t.Context(), ref(t, repo)); err != nil || !slices.Equal(*waits, asked) {
		t.Errorf("busy: %v, waits %v", err, *waits)
	}
	h.Busy = 100
	_, err := c.Fetch(t.Context(), ref(t, repo))
	var e *Error
	if !errors.As(err, &e) || e.Status != 429 {
		t.Errorf("always busy: %v", err)
	}
	h.Busy = 0
	for name, want := range map[string]string{
		"org/none": "there is no such model, or it is private", repo + "@v9": "no such revision",
		repo + ":Q9": "neither safetensors nor GGUF",
	} {
		if _, err := c.Fetch(t.Context(), ref(t, name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, _ = client(t, h)
	h.Token = "hf_secret"
	if _, err := c.Fetch(t.Context(), ref(t, repo)); err == nil || !strings.Contains(err.Error(), "HF_TOKEN") {
		t.Errorf("without a token: %v", err)
	}
	c.Token = "hf_secret"
	if _, err := c.Fetch(t.Context(), ref(t, repo)); err != nil || h.StoreAuth {
		t.Errorf("with a token: %v; the store got it: %v", err, h.StoreAuth)
	}
	h.Gated = true
	if _, err := c.Fetch(t.Context(), ref(t, repo)); err == nil || !strings.Contains(err.Error(), "granted on its page") {
		t.Errorf("gated: %v", err)
	}
	h.Gated = false
	for _, evil := range []string{"../x.json", "/etc/x.json", "a/../../x.json", "a\\x.json", "", "C:x.json"} {
		h.Evil = evil
		_, err := c.Fetch(t.Context(), ref(t, repo))
		if evil != "" && (err == nil || !strings.Contains(err.Error(), "not a name")) {
			t.Errorf("%q: %v", evil, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Fetch(ctx, ref(t, repo)); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if err := (&Client{Endpoint: "http://example.org", Token: "x"}).prepare(); err == nil {
		t.Error("a token would go over an unencrypted connection")
	}
}

func TestRanges(t *testing.T) {
	h := hubtest.New(t)
	data := noise(5 << 20)
	h.Add(repo, "a-Q4_K_M.gguf", data, true)
	c, _ := client(t, h)
	files, err := c.Remotes(t.Context(), ref(t, repo))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	x := files[0]
	defer x.Close()
	for _, at := range []int64{3<<20 - 10, 0, 5<<20 - 30} {
		b := make([]byte, 20)
		if _, err := x.ReadAt(b, at); err != nil || !bytes.Equal(b, data[at:at+20]) {
			t.Errorf("at %d: %v", at, err)
		}
	}
	if n, err := x.ReadAt(make([]byte, 20), 5<<20-5); n != 5 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if x.Read() != 4<<20 {
		t.Errorf("%d bytes were downloaded", x.Read())
	}
	if blobs, _ := filepath.Glob(filepath.Join(c.Cache, "*")); len(blobs) > 0 {
		t.Errorf("the cache has %v", blobs)
	}
	// Offline: what the cache has, or that it has nothing.
	c.Offline = true
	if _, err := c.Remotes(t.Context(), ref(t, repo)); err == nil || !strings.Contains(err.Error(), "is not in the cache") {
		t.Errorf("offline: %v", err)
	}
	c.Offline = false
	if _, err := c.Fetch(t.Context(), ref(t, repo)); err != nil {
		t.Fatal(err)
	}
	read := func(how string) {
		t.Helper()
		files, err := c.Remotes(t.Context(), ref(t, repo))
		if err != nil || len(files) != 1 {
			t.Fatal(how, files, err)
		}
		defer files[0].Close()
		b := make([]byte, len(data))
		if n, err := files[0].ReadAt(b, 0); n != len(b) || err != nil && err != io.EOF || !bytes.Equal(b, data) || files[0].Read() != 0 {
			t.Errorf("%s: %d bytes, %v, %d downloaded", how, n, err, files[0].Read())
		}
	}
	h.Close()
	read("unreachable")
	c.Offline = true
	read("offline")
}

func TestChoose(t *testing.T) {
	list := func(names ...string) (out []File) {
		for _, n := range names {
			out = append(out, File{Name: n})
		}
		return out
	}
	ggufs := list("m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-IQ4_XS.gguf", "m-XQ4_K_M.gguf", "mmproj-m-f16.gguf", "m.imatrix.gguf",
		"BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf", "README.md")
	for _, x := range []struct {
		name string
		all  []File
		main string
		n    int // 0: an error
	}{
		{"o/m", ggufs, "m-Q4_K_M.gguf", 1},
		{"o/m:q4_k_s", ggufs, "m-Q4_K_S.gguf", 1},
		{"o/m:BF16", ggufs, "BF16/m-BF16-00001-of-00002.gguf", 2},
		{"o/m:Q4_K", ggufs, "", 0},
		{"o/m:K_M", ggufs, "", 0},
		{"o/m", list("a.gguf", "b.gguf"), "", 0},
		{"o/m", list("a.gguf"), "a.gguf", 1},
		{"o/m", list("model.safetensors", "config.json", "a.gguf", "x/model.safetensors", "pytorch_model.bin", "LICENSE"), "", 3},
		{"o/m", list("README.md"), "", 0},
	} {
		files, main, err := Choose(ref(t, x.name), x.all)
		if len(files) != x.n || main != x.main || (err != nil) != (x.n == 0) {
			t.Errorf("%s: %v, %q, %v", x.name, files, main, err)
		}
	}
}

func TestNames(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	os.MkdirAll("models/x", 0o755)
	for name, want := range map[string]bool{
		"org/name": true, "org/name:Q4_K_M": true, "org/name@main": true, "hf:org/name": true, "hf:models/x": true,
		"models/x": false, "models/y": false, "./org/name": false, "/org/name": false, "name": false, "org/name/x": false,
		"org/name.gguf": false, "../x": false, "org/..": false, "": false, "C:\\x\\y": false,
	} {
		if Is(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
	for _, s := range []string{"hf:", "hf:x", "hf:a/b/c", "hf:a/..", "hf:a--b/c", "hf:a/b@", "hf:a/b@../x", "hf:a/b:", "hf:a/b:x y", "hf:-a/b"} {
		if _, err := ParseRef(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
	if r := ref(t, "hf:a/b:Q8_0@refs/pr/1"); r != (Ref{"a/b", "refs/pr/1", "Q8_0"}) || r.String() != "hf:a/b:Q8_0@refs/pr/1" {
		t.Errorf("%+v", r)
	}
}

func TestCacheDir(t *testing.T) {
	env := func(kv ...string) func(string) string {
		return func(k string) string {
			for i := 0; i < len(kv); i += 2 {
				if kv[i] == k {
					return kv[i+1]
				}
			}
			return ""
		}
	}
	for _, x := range []struct {
		get  func(string) string
		want string
	}{
		{env("HF_HUB_CACHE", "/c", "HF_HOME", "/h"), "/c"}, {env("HF_HOME", "/h", "XDG_CACHE_HOME", "/x"), "/h/hub"},
		{env("XDG_CACHE_HOME", "/x"), "/x/huggingface/hub"},
	} {
		if got, err := CacheDir(x.get); err != nil || filepath.ToSlash(got) != x.want {
			t.Errorf("got %s, %v; want %s", got, err, x.want)
		}
	}
	c, err := FromEnv(env("HF_HOME", "/h", "HF_ENDPOINT", "https://mirror/", "HF_HUB_OFFLINE", "1", "HF_TOKEN", " t\n"), "a")
	if err != nil || c.Endpoint != "https://mirror" || !c.Offline || c.Token != "t" {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := FromEnv(env("HF_HOME", "/h", "HF_ENDPOINT", "mirror"), "a"); err == nil {
		t.Error("an endpoint without a scheme was taken")
	}
}
