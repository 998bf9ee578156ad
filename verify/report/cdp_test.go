//go:build browser

package report

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// A browser is a headless Chromium, driven over the two pipes of its DevTools
// protocol: messages are JSON, each ended by a zero byte.
type browser struct {
	t       *testing.T
	in      *os.File
	out     *bufio.Reader
	id      int
	session string
}

// openBrowser starts the program that CHROMIUM names, "chromium" without it. The
// test fails, and is not skipped, when there is none: who sets the build tag
// wants it to run.
func openBrowser(t *testing.T) *browser {
	t.Helper()
	name := os.Getenv("CHROMIUM")
	if name == "" {
		name = "chromium"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("no browser: %v (set CHROMIUM)", err)
	}
	toR, toW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fromR, fromW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// No sandbox: tests run as root in containers, on a page that they made.
	cmd := exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--hide-scrollbars", "--force-color-profile=srgb",
		"--no-first-run", "--user-data-dir="+t.TempDir(), "--remote-debugging-pipe", "about:blank")
	cmd.ExtraFiles = []*os.File{toR, fromW} // descriptors 3 and 4
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	toR.Close()
	fromW.Close()
	b := &browser{t: t, in: toW, out: bufio.NewReaderSize(fromR, 1<<20)}
	watchdog := time.AfterFunc(3*time.Minute, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		watchdog.Stop()
		toW.Close()
		done := make(chan struct{})
		go func() { cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-done
		}
		fromR.Close()
	})
	var target struct {
		TargetID string `json:"targetId"`
	}
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct {
		SessionID string `json:"sessionId"`
	}
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	b.call("Page.enable", nil, nil)
	b.call("Runtime.enable", nil, nil)
	return b
}

// call sends a command and waits for its result; events in between are passed over.
func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	b.id++
	msg := map[string]any{"id": b.id, "method": method}
	if params != nil {
		msg["params"] = params
	}
	if b.session != "" {
		msg["sessionId"] = b.session
	}
	raw, err := json.Marshal(msg)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.in.Write(append(raw, 0)); err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	for {
		var m struct {
			ID     int             `json:"id"`
			Method string          `json:"method"`
			Result json.RawMessage `json:"result"`
			Params json.RawMessage `json:"params"`
			Error  *struct {
				Message string `json:"message"`
			} `json:"error"`
		}
		b.read(&m)
		switch {
		case m.Method == "Runtime.exceptionThrown":
			b.t.Errorf("the page threw: %s", m.Params)
		case m.ID != b.id:
		case m.Error != nil:
			b.t.Fatalf("%s: %s", method, m.Error.Message)
		default:
			if result != nil {
				if err := json.Unmarshal(m.Result, result); err != nil {
					b.t.Fatalf("%s: %v", method, err)
				}
			}
			return
		}
	}
}

func (b *browser) read(v any) {
	b.t.Helper()
	raw, err := b.out.ReadBytes(0)
	if err != nil {
		b.t.Fatalf("the browser went away: %v", err)
	}
	if err := json.Unmarshal(raw[:len(raw)-1], v); err != nil {
		b.t.Fatalf("%v in %.200s", err, raw)
	}
}

// open loads a file at a size, light or dark, and waits until it is there.
func (b *browser) open(path string, w, h int, dark, touch bool) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": w, "height": h, "deviceScaleFactor": 1,
		"mobile": touch}, nil)
	b.call("Emulation.setTouchEmulationEnabled", map[string]any{"enabled": touch}, nil)
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	b.call("Emulation.setEmulatedMedia", map[string]any{"media": "screen",
		"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	b.call("Page.navigate", map[string]any{"url": "file://" + path}, nil)
	deadline := time.Now().Add(30 * time.Second)
	for {
		if s, _ := b.eval(`document.readyState + " " + location.protocol`).(string); s == "complete file:" {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%s did not load", path)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// eval runs JavaScript and returns its value.
func (b *browser) eval(js string) any {
	b.t.Helper()
	var r struct {
		Result struct {
			Value any `json:"value"`
		} `json:"result"`
		Exception *struct {
			Text string `json:"text"`
		} `json:"exceptionDetails"`
	}
	b.call("Runtime.evaluate", map[string]any{"expression": js, "returnByValue": true}, &r)
	if r.Exception != nil {
		b.t.Fatalf("%s: %s", js, r.Exception.Text)
	}
	return r.Result.Value
}

// text evaluates JavaScript whose value is a string.
func (b *browser) text(format string, args ...any) string {
	b.t.Helper()
	s, ok := b.eval(fmt.Sprintf(format, args...)).(string)
	if !ok {
		b.t.Fatalf("no text from "+format, args...)
	}
	return s
}

// number evaluates JavaScript whose value is a number.
func (b *browser) number(format string, args ...any) float64 {
	b.t.Helper()
	x, ok := b.eval(fmt.Sprintf(format, args...)).(float64)
	if !ok {
		b.t.Fatalf("no number from "+format, args...)
	}
	return x
}

// mouse presses at the first point, moves through the others and lets go.
func (b *browser) mouse(points ...[2]float64) {
	b.t.Helper()
	for i, p := range points {
		typ := "mouseMoved"
		if i == 0 {
			typ = "mousePressed"
		}
		b.call("Input.dispatchMouseEvent", map[string]any{"type": typ, "x": p[0], "y": p[1], "button": "left", "buttons": 1,
			"clickCount": 1}, nil)
	}
	p := points[len(points)-1]
	b.call("Input.dispatchMouseEvent", map[string]any{"type": "mouseReleased", "x": p[0], "y": p[1], "button": "left",
		"clickCount": 1}, nil)
}

// touch puts a finger on the first point, moves it through the others and lifts it.
func (b *browser) touch(points ...[2]float64) {
	b.t.Helper()
	for i, p := range points {
		typ := "touchMove"
		if i == 0 {
			typ = "touchStart"
		}
		b.call("Input.dispatchTouchEvent",
			map[string]any{"type": typ, "touchPoints": []map[string]float64{{"x": p[0], "y": p[1]}}}, nil)
	}
	b.call("Input.dispatchTouchEvent", map[string]any{"type": "touchEnd", "touchPoints": []any{}}, nil)
}

// key presses a key on the focused element.
func (b *browser) key(name string, code int) {
	b.t.Helper()
	for _, typ := range []string{"keyDown", "keyUp"} {
		b.call("Input.dispatchKeyEvent", map[string]any{"type": typ, "key": name, "code": name,
			"windowsVirtualKeyCode": code}, nil)
	}
}

// screenshot writes the page as PNG, up to the height of surface that Chromium draws.
func (b *browser) screenshot(path string) {
	b.t.Helper()
	var r struct {
		Data string `json:"data"`
	}
	clip := map[string]any{"x": 0, "y": 0, "scale": 1, "width": b.number("document.documentElement.clientWidth"),
		"height": min(16000, b.number("document.documentElement.scrollHeight"))}
	b.call("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true, "clip": clip}, &r)
	raw, err := base64.StdEncoding.DecodeString(r.Data)
	if err == nil {
		err = os.WriteFile(path, raw, 0o644)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}
