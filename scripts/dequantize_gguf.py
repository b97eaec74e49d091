#!/usr/bin/env python3
"""Writes a GGUF model with weights in float32: llama.cpp then multiplies in float32 too, as Transformers does.

    scripts/dequantize_gguf.py IN.gguf OUT.gguf

With 8-bit weights llama.cpp rounds activations to 8 bits, and the KL divergence of two caches cannot fall below what
that rounding does (0.004 nats on SmolLM2-135M). Needs the package gguf."""

import sys

import gguf


def copy_fields(reader, writer):
    for field in reader.fields.values():
        if field.name in (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE) or field.name.startswith("GGUF."):
            continue  # the writer's own
        kind = field.types[0]
        writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)


def main():
    if len(sys.argv) != 3 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__.strip())
    reader = gguf.GGUFReader(sys.argv[1])
    architecture = reader.get_field(gguf.Keys.General.ARCHITECTURE).contents()
    writer = gguf.GGUFWriter(sys.argv[2], architecture)
    copy_fields(reader, writer)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
