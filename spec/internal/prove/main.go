// Command prove compiles every proof of a folder from a clean state, asks the prover's
// kernel what each theorem says and on which axioms it rests, and writes that as
// proved.json.
//
//	prove [-dir D] [-check] [-chk=false]
//
// With -check it writes nothing and fails where proved.json says otherwise. Unless -chk is
// false, the separate checker coqchk reads the compiled proofs once more. It needs coqc and
// coqchk on the path, with the libraries that spec/proofs/README.md names.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/spec/internal/coq"
)

const ledger = "proved.json"

func main() {
	dir := flag.String("dir", ".", "folder of the proofs")
	check := flag.Bool("check", false, "compare with "+ledger+", write nothing")
	chk := flag.Bool("chk", true, "run coqchk too")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "prove: no arguments are expected beside flags")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Stdout, *dir, *check, *chk); err != nil {
		fmt.Fprintln(os.Stderr, "prove:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, log io.Writer, dir string, check, chk bool) error {
	name := filepath.Join(dir, ledger)
	var was []byte
	if check {
		var err error
		if was, err = os.ReadFile(name); err != nil {
			return err
		}
	}
	p, err := prove(ctx, log, dir, chk)
	if err != nil {
		return err
	}
	if check {
		return compare(log, was, p)
	}
	tmp := name + ".tmp"
	if err := os.WriteFile(tmp, p.Encode(), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// prove does all of the work but for the comparison.
func prove(ctx context.Context, log io.Writer, dir string, chk bool) (*spec.Proofs, error) {
	text, err := sources(dir)
	if err != nil {
		return nil, err
	}
	order, err := coq.Order(text)
	if err != nil {
		return nil, err
	}
	p := &spec.Proofs{Sources: map[string]string{}}
	var errs []error
	for _, m := range order {
		p.Sources[m+".v"] = coq.Hash(text[m])
		errs = append(errs, coq.Check(m+".v", text[m])...)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	v, err := exec.CommandContext(ctx, "coqc", "--print-version").Output()
	if err != nil {
		return nil, fmt.Errorf("coqc: %w; spec/proofs/README.md says what to install", err)
	}
	p.Prover = "Coq " + strings.Fields(string(v))[0]
	work, err := os.MkdirTemp("", "proofs") // a clean state: no compiled file lies in the tree
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	begin := time.Now()
	for _, m := range order {
		start := time.Now()
		if err := compile(ctx, work, m, text[m]); err != nil {
			return nil, err
		}
		fmt.Fprintf(log, "%-12s %5.1f s\n", m, time.Since(start).Seconds())
	}
	if p.Theorems, err = askAll(ctx, work, order, text); err != nil {
		return nil, err
	}
	slices.SortFunc(p.Theorems, func(a, b spec.Theorem) int { return strings.Compare(a.Name, b.Name) })
	pure := 0
	for _, t := range p.Theorems {
		for _, a := range t.Axioms {
			if !slices.Contains(coq.Allowed, a) {
				errs = append(errs, fmt.Errorf("%s rests on %s", t.Name, a))
			}
		}
		if len(t.Axioms) == 0 {
			pure++
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	fmt.Fprintf(log, "%d theorems, %d without any axiom, %.0f s, %s\n",
		len(p.Theorems), pure, time.Since(begin).Seconds(), p.Prover)
	if chk {
		if err := secondChecker(ctx, log, work, order); err != nil {
			return nil, err
		}
		p.Checker = "coqchk"
	}
	p.Digest = p.Sum()
	return p, nil
}

// sources returns the files of dir, names without ".v".
func sources(dir string) (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.v"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s has no *.v", dir)
	}
	text := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		text[strings.TrimSuffix(filepath.Base(f), ".v")] = string(b)
	}
	return text, nil
}

// compile writes a file into work and compiles it there.
func compile(ctx context.Context, work, m, text string) error {
	if err := os.WriteFile(filepath.Join(work, m+".v"), []byte(text), 0o644); err != nil {
		return err
	}
	c := exec.CommandContext(ctx, "coqc", "-q", "-R", ".", coq.Root, "-w", "-all", m+".v")
	c.Dir = work
	if b, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("coqc: %w\n%s", err, b)
	}
	return nil
}

// askAll asks about all files, as many at a time as there are processors.
func askAll(ctx context.Context, work string, order []string, text map[string]string) ([]spec.Theorem, error) {
	lists, errs := make([][]spec.Theorem, len(order)), make([]error, len(order))
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(runtime.NumCPU(), len(order)) {
		wg.Go(func() {
			for i := range next {
				lists[i], errs[i] = ask(ctx, work, order[i], text[order[i]])
			}
		})
	}
	for i := range order {
		next <- i
	}
	close(next)
	wg.Wait()
	return slices.Concat(lists...), errors.Join(errs...)
}

// ask returns a file's theorems with types and axioms from the kernel.
func ask(ctx context.Context, work, m, text string) (out []spec.Theorem, err error) {
	// Axioms first, before any import, so that they come with their full names; types after
	// the file's own header, so that they read as they do there.
	bare := "From " + coq.Root + " Require " + m + ".\n"
	types := coq.Header(text) + "\nFrom " + coq.Root + " Require Import " + m + ".\nSet Printing Width 1000.\n"
	list := coq.Theorems(text)
	for _, s := range list {
		full := m + "." + s.Name
		bare += fmt.Sprintf("Redirect %q Print Assumptions %s.%s.\n", full+".axioms", coq.Root, full)
		types += fmt.Sprintf("Redirect %q Check %s.%s.\n", full+".type", coq.Root, full)
	}
	if err := compile(ctx, work, "Ask"+m, bare+types); err != nil {
		return nil, err
	}
	for _, s := range list {
		t := spec.Theorem{Name: m + "." + s.Name, Statement: s.Text}
		b, err := os.ReadFile(filepath.Join(work, t.Name+".axioms.out"))
		if err != nil {
			return nil, err
		}
		t.Axioms = axioms(string(b))
		if b, err = os.ReadFile(filepath.Join(work, t.Name+".type.out")); err != nil {
			return nil, err
		}
		_, ty, ok := strings.Cut(string(b), "\n     : ")
		if !ok {
			return nil, fmt.Errorf("%s: Check printed %q", t.Name, b)
		}
		t.Type = strings.Join(strings.Fields(ty), " ")
		out = append(out, t)
	}
	return out, nil
}

// axioms reads what Print Assumptions wrote: a line that starts in the first column names
// one, whatever kind it is, so that nothing unknown passes.
func axioms(out string) []string {
	list := []string{}
	for _, l := range strings.Split(strings.TrimSpace(out), "\n") {
		if l == "Closed under the global context" || l == "Axioms:" || strings.HasPrefix(l, " ") {
			continue
		}
		name, _, _ := strings.Cut(l, " ")
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// secondChecker has coqchk read the compiled files, which shares no state with the program
// that compiled them, and refuses any axiom or unsafe definition of ours in its summary.
func secondChecker(ctx context.Context, log io.Writer, work string, order []string) error {
	start := time.Now()
	args := []string{"-o", "-silent", "-R", work, coq.Root}
	for _, m := range order {
		args = append(args, "-norec", coq.Root+"."+m)
	}
	b, err := exec.CommandContext(ctx, "coqchk", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("coqchk: %w\n%s", err, b)
	}
	summary := bytes.Index(b, []byte("CONTEXT SUMMARY"))
	if summary < 0 {
		return fmt.Errorf("coqchk printed no summary:\n%s", b)
	}
	for _, l := range strings.Split(string(b[summary:]), "\n") {
		if l = strings.TrimSpace(l); strings.HasPrefix(l, coq.Root+".") {
			return fmt.Errorf("coqchk: %s is not proved", l)
		}
	}
	fmt.Fprintf(log, "coqchk agrees, %.0f s\n", time.Since(start).Seconds())
	return nil
}

// compare says where proved.json differs from what the prover has just said.
func compare(log io.Writer, was []byte, p *spec.Proofs) error {
	old, err := spec.ParseProofs(was)
	if err != nil {
		return err
	}
	if old.Prover != p.Prover { // another release prints types another way; all else must agree
		fmt.Fprintf(log, "%s was written by %s: types are not compared\n", ledger, old.Prover)
		p.Prover = old.Prover
		for i := range p.Theorems {
			if t := old.Find(p.Theorems[i].Name); t != nil {
				p.Theorems[i].Type = t.Type
			}
		}
	}
	if p.Checker == "" { // -chk=false says nothing about it
		p.Checker = old.Checker
	}
	p.Digest = p.Sum()
	if bytes.Equal(was, p.Encode()) {
		return nil
	}
	for _, t := range p.Theorems {
		switch o := old.Find(t.Name); {
		case o == nil:
			err = errors.Join(err, fmt.Errorf("it lacks %s", t.Name))
		case o.Statement != t.Statement:
			err = errors.Join(err, fmt.Errorf("%s: statement differs", t.Name))
		case o.Type != t.Type:
			err = errors.Join(err, fmt.Errorf("%s: type differs; now %s", t.Name, t.Type))
		case !slices.Equal(o.Axioms, t.Axioms):
			err = errors.Join(err, fmt.Errorf("%s: axioms differ; now %q", t.Name, t.Axioms))
		}
	}
	for _, t := range old.Theorems {
		if p.Find(t.Name) == nil {
			err = errors.Join(err, fmt.Errorf("no source has its %s", t.Name))
		}
	}
	return errors.Join(fmt.Errorf("%s is not what the prover says; after a change of the proofs run: "+
		"go run ./spec/internal/prove -dir spec/proofs", ledger), err)
}
