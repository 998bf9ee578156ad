package tokenizer

// A stage looks for one match of its pattern at s[i:] and returns its end, or i
// when there is none. s is one piece of sanitized text: what lies outside it
// does not exist for lookaheads, as in llama.cpp and Hugging Face.
type stage func(t classTable, s string, i int) int

// A splitter cuts text into the words that BPE never merges across. Each stage
// isolates its matches; matches and the gaps between them go to the next stage.
type splitter []stage

// split calls word for each piece of s, in order. The pieces cover s.
func (sp splitter) split(t classTable, s string, word func(string)) {
	if len(sp) == 0 {
		word(s)
		return
	}
	match, rest := sp[0], sp[1:]
	gap := 0
	for i := 0; i < len(s); {
		j := match(t, s, i)
		if j == i {
			i += unitLen(s, i)
			continue
		}
		if gap < i {
			rest.split(t, s[gap:i], word)
		}
		rest.split(t, s[i:j], word)
		i, gap = j, j
	}
	if gap < len(s) {
		rest.split(t, s[gap:], word)
	}
}

// contraction returns the length of 's 't 'm 'd 're 've 'll at s[i:], else 0.
// Upper case counts only if fold is set. Unicode case folding would add U+017F
// (long s), which Hugging Face's (?i) accepts and llama.cpp does not.
func contraction(s string, i int, fold bool) int {
	if s[i] != '\'' || i+1 >= len(s) {
		return 0
	}
	a, b := s[i+1], byte(0)
	if i+2 < len(s) {
		b = s[i+2]
	}
	if fold {
		a, b = lower(a), lower(b)
	}
	switch {
	case a == 's' || a == 't' || a == 'm' || a == 'd':
		return 2
	case a == 'r' && b == 'e', a == 'v' && b == 'e', a == 'l' && b == 'l':
		return 3
	}
	return 0
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		b += 'a' - 'A'
	}
	return b
}

func isNewline(b byte) bool { return b == '\r' || b == '\n' }

func newlines(s string, i int) int {
	for i < len(s) && isNewline(s[i]) {
		i++
	}
	return i
}

// spaces matches `\s+(?!\S)|\s+` at s[i:], and `\s*[\r\n]+` before them if
// lines is set.
func spaces(t classTable, s string, i int, lines bool) int {
	last, line := i, 0 // start of the last blank, end of the last newline
	j := i
	for j < len(s) {
		k, w := t.at(s, j)
		if k != classSpace {
			break
		}
		last = j
		j += w
		if isNewline(s[last]) {
			line = j
		}
	}
	switch {
	case lines && line > 0:
		return line
	case j < len(s) && last > i:
		// The last blank stays for the word that follows.
		return last
	}
	return j
}

// gpt2 is GPT-2's pattern:
// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
func gpt2(t classTable, s string, i int) int {
	if n := contraction(s, i, false); n > 0 {
		return i + n
	}
	j := i
	if s[i] == ' ' && i+1 < len(s) {
		j++
	}
	k, w := t.at(s, j)
	switch k {
	case classSpace:
		return spaces(t, s, i, false)
	case classLetter, classNumber:
		return t.run(s, j+w, k)
	}
	return otherRun(t, s, j+w)
}

// otherRun returns the end of the run of [^\s\p{L}\p{N}] at s[i:].
func otherRun(t classTable, s string, i int) int {
	for i < len(s) {
		k, w := t.at(s, i)
		if k == classSpace || k == classLetter || k == classNumber {
			break
		}
		i += w
	}
	return i
}

// llama3 returns the pattern of Llama 3 and its relatives, with at most digits
// digits in a number:
//
//	(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}|
//	 ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//
// If marks is set, \p{M} counts as \p{L} (Qwen 3.5).
func llama3(digits int, marks bool) stage {
	return func(t classTable, s string, i int) int {
		if n := contraction(s, i, true); n > 0 {
			return i + n
		}
		letter := func(k uint8) bool { return k == classLetter || marks && k == classMark }
		k, w := t.at(s, i)
		if k == classNumber {
			return numberRun(t, s, i, digits)
		}
		if !isNewline(s[i]) {
			j := i + w
			ok := letter(k)
			if !ok && j < len(s) {
				next, n := t.at(s, j)
				if ok = letter(next); ok {
					j += n
				}
			}
			if ok {
				for j < len(s) {
					k, w := t.at(s, j)
					if !letter(k) {
						break
					}
					j += w
				}
				return j
			}
		}
		j := i
		if s[i] == ' ' && i+1 < len(s) {
			j++
		}
		start := j
		for j < len(s) {
			k, w := t.at(s, j)
			if k == classSpace || k == classNumber || letter(k) {
				break
			}
			j += w
		}
		if j > start {
			return newlines(s, j)
		}
		return spaces(t, s, i, true)
	}
}

func numberRun(t classTable, s string, i, limit int) int {
	for n := 0; i < len(s) && n < limit; n++ {
		k, w := t.at(s, i)
		if k != classNumber {
			break
		}
		i += w
	}
	return i
}

// tekken returns the pattern of Mistral's tekken and of GPT-4o as llama.cpp
// runs it. The original tells upper from lower case in all of Unicode and lets
// marks join words; llama.cpp's form knows case in ASCII only and counts every
// other letter as both, and leaves marks out:
// X?U*W+|X?U+W*|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
// where X is [^\r\n\p{L}\p{N}], U a letter but not a-z, W a letter but not A-Z.
// If suffix is set, a contraction may end a word (GPT-4o).
func tekken(digits int, suffix bool) stage {
	return func(t classTable, s string, i int) int {
		k, w := t.at(s, i)
		if k == classNumber {
			return numberRun(t, s, i, digits)
		}
		j := i
		if k != classLetter && !isNewline(s[i]) {
			j += w
		}
		if end := caseWord(t, s, j); end > j {
			if suffix && end < len(s) {
				end += contraction(s, end, true)
			}
			return end
		}
		j = i
		if s[i] == ' ' && i+1 < len(s) {
			j++
		}
		if end := otherRun(t, s, j); end > j {
			for end < len(s) && (isNewline(s[end]) || s[end] == '/') {
				end++
			}
			return end
		}
		return spaces(t, s, i, true)
	}
}

// caseWord matches U*W+|U+W* at s[i:] (see tekken) and returns its end, or i.
func caseWord(t classTable, s string, i int) int {
	j, both := i, -1 // both: end of the last letter that is in U and in W
	for j < len(s) {
		k, w := t.at(s, j)
		if k != classLetter || 'a' <= s[j] && s[j] <= 'z' {
			break
		}
		j += w
		if w > 1 {
			both = j
		}
	}
	end := j
	for end < len(s) {
		k, w := t.at(s, end)
		if k != classLetter || 'A' <= s[end] && s[end] <= 'Z' {
			break
		}
		end += w
	}
	switch {
	case end > j:
		return end // U* took all it could and W+ has a letter of its own
	case both >= 0:
		// U* gives letters back until W+ finds one: the last that is not
		// ASCII. What follows it is upper case, so W+ ends there.
		return both
	}
	return j
}

// digitAlone is \p{N}: every digit a piece of its own.
func digitAlone(t classTable, s string, i int) int { return numberRun(t, s, i, 1) }

// digitRun is \p{N}+.
func digitRun(t classTable, s string, i int) int { return t.run(s, i, classNumber) }

// digitGroup is \p{N}{1,3}.
func digitGroup(t classTable, s string, i int) int { return numberRun(t, s, i, 3) }

// threeDigits is [0-9][0-9][0-9].
func threeDigits(_ classTable, s string, i int) int {
	if i+3 > len(s) {
		return i
	}
	for _, b := range []byte(s[i : i+3]) {
		if b < '0' || b > '9' {
			return i
		}
	}
	return i + 3
}

// punctRun returns the stage [\p{P}extra]+.
func punctRun(extra string) stage {
	var set [128]bool
	for _, b := range []byte(extra) {
		set[b] = true
	}
	return func(t classTable, s string, i int) int {
		for i < len(s) {
			k, w := t.at(s, i)
			if k != classPunct && (s[i] >= 128 || !set[s[i]]) {
				break
			}
			i += w
		}
		return i
	}
}

// runeRun returns the stage [lo-hi...]+ for pairs of bounds. Whitespace is in no
// range: llama.cpp puts another character in its place before it matches.
func runeRun(bounds ...rune) stage {
	return func(t classTable, s string, i int) int {
		for i < len(s) {
			c, w := decode(s, i)
			in := false
			for b := 0; b+1 < len(bounds); b += 2 {
				in = in || bounds[b] <= c && c <= bounds[b+1]
			}
			if !in || t.of(c) == classSpace {
				break
			}
			i += w
		}
		return i
	}
}

// oneNewline is [\r\n].
func oneNewline(_ classTable, s string, i int) int {
	if isNewline(s[i]) {
		return i + 1
	}
	return i
}

// spacedRun returns the stage \s?[k]+.
func spacedRun(class uint8) stage {
	return func(t classTable, s string, i int) int {
		j := i
		if k, w := t.at(s, i); k == classSpace {
			j += w
		}
		if end := t.run(s, j, class); end > j {
			return end
		}
		return i
	}
}

// deepseek3 is the last stage of DeepSeek V3:
// [ASCII punctuation][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
// Control characters match nothing and stay together as a gap.
func deepseek3(t classTable, s string, i int) int {
	k, w := t.at(s, i)
	symbol := func(k uint8) bool { return k == classPunct || k == classSymbol }
	word := func(k uint8) bool { return k == classLetter || k == classMark }
	while := func(i int, in func(uint8) bool) int {
		for i < len(s) {
			k, w := t.at(s, i)
			if !in(k) {
				break
			}
			i += w
		}
		return i
	}
	if symbol(k) && w == 1 {
		j := i + 1
		for j < len(s) && 'a' <= lower(s[j]) && lower(s[j]) <= 'z' {
			j++
		}
		if j > i+1 {
			return j
		}
	}
	if word(k) {
		return while(i+w, word)
	}
	if !symbol(k) && !isNewline(s[i]) {
		if j := while(i+w, word); j > i+w {
			return j
		}
	}
	j := i
	if s[i] == ' ' {
		j++
	}
	if end := while(j, symbol); end > j {
		return newlines(s, end)
	}
	if k == classSpace {
		return spaces(t, s, i, true)
	}
	return i
}

// lines is [^\n]+|[\n]+.
func lines(_ classTable, s string, i int) int {
	nl := s[i] == '\n'
	for i < len(s) && (s[i] == '\n') == nl {
		i++
	}
	return i
}
