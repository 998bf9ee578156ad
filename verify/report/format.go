package report

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
)

// missing stands where nothing was measured.
const missing = "–"

var funcs = template.FuncMap{
	"fix": fix, "comma": comma, "sig": sig, "pm": pm, "pct": pct, "deg": func(x float64) string { return fix(x, 1) },
	"yes": func(b bool) string {
		if b {
			return "yes"
		}
		return "no"
	},
	"short":  func(s string) string { return s[:min(len(s), 12)] },
	"size":   size,
	"join":   func(s []string) string { return shellJoin(s) },
	"layers": layerNames, "signed": signed,
	"status": statusClass, "wbr": wbr, "evidence": evidence,
	"link": func(s string) bool { return strings.HasPrefix(s, "https://") },
}

// fix writes a number with n decimals, "–" when it is none.
func fix(x float64, n int) string {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return missing
	}
	s := strconv.FormatFloat(x, 'f', n, 64)
	return strings.Replace(s, "-", "−", 1)
}

// sig writes a number with three significant digits, small ones as powers of ten.
func sig(x float64) string {
	a := math.Abs(x)
	switch {
	case math.IsNaN(x) || math.IsInf(x, 0):
		return missing
	case x == 0:
		return "0"
	case a >= 1000:
		return comma(int64(math.Round(x)))
	case a >= 100:
		return fix(x, 0)
	case a >= 10:
		return fix(x, 1)
	case a >= 1:
		return fix(x, 2)
	case a >= 0.1:
		return fix(x, 3)
	case a >= 0.001:
		return fix(x, 4)
	}
	m, e, _ := strings.Cut(strconv.FormatFloat(x, 'e', 1, 64), "e")
	n, _ := strconv.Atoi(e)
	return strings.Replace(m, "-", "−", 1) + "×10" + superscript(n)
}

// pm writes a standard error with the decimals of its value.
func pm(x, err float64) string {
	s := sig(x)
	n := 0
	if _, d, ok := strings.Cut(s, "."); ok {
		n = len(d)
	}
	if t := fix(err, n); !strings.ContainsRune(s, '×') && strings.Trim(t, "0.") != "" {
		return t
	}
	return sig(err)
}

func superscript(n int) string {
	const digits = "⁰¹²³⁴⁵⁶⁷⁸⁹"
	var b strings.Builder
	for _, c := range strconv.Itoa(n) {
		if c == '-' {
			b.WriteRune('⁻')
			continue
		}
		b.WriteRune([]rune(digits)[c-'0'])
	}
	return b.String()
}

// pct writes a share as a percentage.
func pct(x float64, n int) string { return fix(100*x, n) + " %" } // not broken over lines

// comma groups digits by thousands.
func comma(n any) string {
	s := fmt.Sprint(n)
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "−", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}

// size writes a number of bytes in the unit that suits it.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fix(float64(n)/(1<<30), 2) + " GiB"
	case n >= 1<<20:
		return fix(float64(n)/(1<<20), 1) + " MiB"
	case n >= 1<<10:
		return fix(float64(n)/(1<<10), 1) + " KiB"
	}
	return comma(n) + " B"
}

// shellJoin writes a command line, with quotes where a shell needs them.
func shellJoin(args []string) string {
	var out []string
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\n\"'$&|;<>()*?`\\!#~[]{}") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}

// wbr lets long names break after the characters that part their words.
func wbr(s string) template.HTML {
	s = template.HTMLEscapeString(s)
	for _, c := range []string{"_", "/"} {
		s = strings.ReplaceAll(s, c, c+"<wbr>")
	}
	return template.HTML(s)
}

// evidence parts the places that show a claim.
func evidence(s string) []string {
	var out []string
	for _, p := range strings.Split(s, ";") {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, p)
		}
	}
	return out
}

func statusClass(s string) string {
	switch s {
	case "proved", "argued", "tested", "refuted", "open":
		return s
	}
	return "open"
}
