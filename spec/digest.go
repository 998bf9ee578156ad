package spec

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

const (
	digestKey = `"manifest_sha256": "`
	hexDigits = 64
)

// noDigest stands where the digest goes while it is computed.
var noDigest = bytes.Repeat([]byte("0"), hexDigits)

// ManifestDigest computes the digest of a manifest from its bytes: their SHA-256
// with the 64 digits of the member manifest_sha256 replaced by zeros. It also
// returns where the digits begin. It fails unless the member is there exactly
// once, written as `"manifest_sha256": "<64 characters>"`.
func ManifestDigest(raw []byte) (digest string, at int, err error) {
	at = bytes.Index(raw, []byte(digestKey))
	if at < 0 || bytes.Count(raw, []byte(digestKey)) != 1 {
		return "", 0, fmt.Errorf("key manifest_sha256 must stand in the manifest once, as %s<%d hex digits>\"", digestKey,
			hexDigits)
	}
	at += len(digestKey)
	if at+hexDigits >= len(raw) || raw[at+hexDigits] != '"' {
		return "", 0, fmt.Errorf("key manifest_sha256 must have %d hex digits", hexDigits)
	}
	h := sha256.New()
	h.Write(raw[:at])
	h.Write(noDigest)
	h.Write(raw[at+hexDigits:])
	return hex.EncodeToString(h.Sum(nil)), at, nil
}

// SealManifest puts the digest into the bytes of a manifest, in place. The member
// must be there with 64 characters as its value.
func SealManifest(raw []byte) error {
	digest, at, err := ManifestDigest(raw)
	if err != nil {
		return err
	}
	copy(raw[at:], digest)
	return nil
}

// CheckManifest returns an error unless a manifest's bytes have the digest that
// stands in them.
func CheckManifest(raw []byte) error {
	digest, at, err := ManifestDigest(raw)
	if err != nil {
		return err
	}
	if got := string(raw[at : at+hexDigits]); got != digest {
		return fmt.Errorf("key manifest_sha256 is %s, but the file has %s: it was changed or damaged", got, digest)
	}
	return nil
}
