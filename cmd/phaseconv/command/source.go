package command

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/hub"
	"github.com/phaseconv/phaseconv/internal/buildinfo"
)

// hubNames is what help says of names of sources.
const hubNames = `A source is a path, or a model on the Hugging Face hub: ORG/NAME, ORG/NAME:Q4_K_M for one GGUF file
of several, ORG/NAME@REVISION; with hf: in front, whatever is on the disk. It is downloaded into the
cache that Python's huggingface_hub uses (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE).`

// hubToo is the short form of it.
const hubToo = `A model on the hub has a name such as ORG/NAME:
"phaseconv convert --help" tells more.`

// hubClient makes a client of the hub as the environment asks for.
func hubClient(stderr io.Writer) (*hub.Client, error) {
	h, err := hub.FromEnv(os.Getenv, buildinfo.Tool())
	if err != nil {
		return nil, usagef("%w", err)
	}
	h.Progress, h.Notice = showProgress(stderr), notes(stderr)
	return h, nil
}

// local returns the path of a source: models of the hub are brought into its cache. No other name
// makes it touch the network.
func local(ctx context.Context, stderr io.Writer, name string) (string, error) {
	if !hub.Is(name) {
		return name, nil
	}
	ref, err := hub.ParseRef(name)
	if err != nil {
		return "", usagef("%w", err)
	}
	h, err := hubClient(stderr)
	if err != nil {
		return "", err
	}
	path, err := h.Fetch(ctx, ref)
	if err != nil && !strings.HasPrefix(name, hub.Prefix) && ctx.Err() == nil {
		return "", fmt.Errorf("%w (no file or folder %s is here, so this was looked up on the hub)", err, name)
	}
	return path, err
}

// locals does it for several names; "" stays what it is.
func locals(ctx context.Context, stderr io.Writer, names []string) ([]string, error) {
	out := make([]string, len(names))
	for i, n := range names {
		var err error
		if out[i], err = local(ctx, stderr, n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// openSource opens a source, brought to the disk if it is on the hub, and says what is worth
// knowing of it. The caller closes the checkpoint.
func openSource(ctx context.Context, stderr io.Writer, name string) (*checkpoint.Checkpoint, error) {
	path, err := local(ctx, stderr, name)
	if err != nil {
		return nil, err
	}
	ck, err := checkpoint.Open(path)
	if err != nil {
		return nil, err
	}
	printNotes(stderr, ck)
	return ck, nil
}

// outlined returns an outline of a model of the hub: see hub.Outline. The caller calls remove.
func outlined(ctx context.Context, stderr io.Writer, name string, small int64) (
	o *hub.Outline, remove func(), err error) {
	ref, err := hub.ParseRef(name)
	if err != nil {
		return nil, nil, usagef("%w", err)
	}
	h, err := hubClient(stderr)
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "phaseconv-hub-")
	if err != nil {
		return nil, nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	if o, err = h.Outline(ctx, ref, dir, small); err != nil {
		remove()
		return nil, nil, err
	}
	fmt.Fprintf(stderr, "phaseconv: note: %.1f MiB of %s were read\n", float64(o.Read)/(1<<20), ref)
	return o, remove, nil
}
