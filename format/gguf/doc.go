// Package gguf reads and writes GGUF files, the model format of llama.cpp:
// versions 2 and 3, little-endian, single files and splits.
//
// A GGUF file is a header of key-value pairs and tensor descriptions, followed
// by the tensor data. Open reads the header and leaves the data on disk;
// File.Reader and File.ReadRows read from it on demand, and any number of
// goroutines may do so at once. Key-value pairs keep their encoded bytes, so a
// file can be rewritten with everything it held, in its order:
//
//	f, err := gguf.Open("model.gguf")
//	...
//	specs := make([]gguf.TensorSpec, len(f.Tensors))
//	for i := range f.Tensors {
//		specs[i] = f.Tensors[i].Spec()
//	}
//	w, err := gguf.Create("copy.gguf", f.KVs, specs)
//	...
//	defer w.Abort()
//	for i := range f.Tensors {
//		if err := w.CopyTensor(f, &f.Tensors[i]); err != nil {
//			return err
//		}
//	}
//	return w.Commit()
//
// Dimensions are kept in the file's order, innermost first, as ggml counts them;
// Tensor.Shape gives the row-major order of numpy and safetensors.
//
// Quantised rows are converted by DequantizeRow and QuantizeRow, which give the
// bits of ggml's reference functions whatever the machine. A file is never
// trusted: every count is bounded by limits.go and by the size of the file,
// and broken files give a *FormatError, unknown ones an *UnsupportedError.
package gguf
