"""Writes GGUF models of a few kilobytes with random weights: enough for llama.cpp to load them, and for nothing else.

Layout (ggml/docs/gguf.md): magic, version, counts, key-value pairs, tensor table, padding to 32 bytes, tensor data.
"""

import random
import struct

UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9
F32 = 0
ALIGNMENT = 32
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # token types of llama.cpp's SentencePiece vocabulary


def _string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(kind, value):
    if kind == STRING:
        return _string(value)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f"}[kind], value)


def _pair(key, kind, value):
    head = _string(key)
    if isinstance(value, list):
        return head + struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(_value(kind, v) for v in value)
    return head + struct.pack("<I", kind) + _value(kind, value)


def _padded(data):
    return data + b"\0" * (-len(data) % ALIGNMENT)


def write(path, pairs, tensors):
    """pairs: (key, kind, value or list); tensors: (name, dimensions, innermost first), filled with small random numbers."""
    generator = random.Random(1)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(_pair(*pair) for pair in pairs)
    data = b""
    for name, dims in tensors:
        head += _string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", F32, len(data))
        n = 1
        for dim in dims:
            n *= dim
        data += _padded(struct.pack(f"<{n}f", *(generator.uniform(-0.1, 0.1) for _ in range(n))))
    with open(path, "wb") as file:
        file.write(_padded(head) + data)


def byte_vocabulary():
    """Three special tokens and the 256 bytes: every text can be tokenised."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    return [
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.tokens", STRING, tokens),
        ("tokenizer.ggml.scores", FLOAT32, [0.0] * len(tokens)),
        ("tokenizer.ggml.token_type", INT32, [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256),
        ("tokenizer.ggml.bos_token_id", UINT32, 1),
        ("tokenizer.ggml.eos_token_id", UINT32, 2),
    ]


N_VOCAB = 259


def write_mamba(path):
    """A recurrent model: it has no attention, so no KV cache that mikv could hold."""
    n_embd, n_inner, n_state, n_conv, rank = 32, 64, 16, 4, 2
    pairs = [
        ("general.architecture", STRING, "mamba"),
        ("mamba.context_length", UINT32, 256),
        ("mamba.embedding_length", UINT32, n_embd),
        ("mamba.feed_forward_length", UINT32, 0),
        ("mamba.attention.head_count", UINT32, 0),
        ("mamba.block_count", UINT32, 1),
        ("mamba.ssm.conv_kernel", UINT32, n_conv),
        ("mamba.ssm.inner_size", UINT32, n_inner),
        ("mamba.ssm.state_size", UINT32, n_state),
        ("mamba.ssm.time_step_rank", UINT32, rank),
        ("mamba.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
    ] + byte_vocabulary()
    tensors = [
        ("token_embd.weight", [n_embd, N_VOCAB]),
        ("output_norm.weight", [n_embd]),
        ("blk.0.attn_norm.weight", [n_embd]),
        ("blk.0.ssm_in.weight", [n_embd, 2 * n_inner]),
        ("blk.0.ssm_conv1d.weight", [n_conv, n_inner]),
        ("blk.0.ssm_conv1d.bias", [n_inner]),
        ("blk.0.ssm_x.weight", [n_inner, rank + 2 * n_state]),
        ("blk.0.ssm_dt.weight", [rank, n_inner]),
        ("blk.0.ssm_dt.bias", [n_inner]),
        ("blk.0.ssm_a", [n_state, n_inner]),
        ("blk.0.ssm_d", [n_inner]),
        ("blk.0.ssm_out.weight", [n_inner, n_embd]),
    ]
    write(path, pairs, tensors)


def write_llama(path, head_dim=32, n_layers=2):
    """An ordinary decoder, small enough that every test can have its own."""
    n_embd, n_heads, n_kv_heads, n_ff = 64, 4, 2, 64
    pairs = [
        ("general.architecture", STRING, "llama"),
        ("llama.context_length", UINT32, 512),
        ("llama.embedding_length", UINT32, n_embd),
        ("llama.feed_forward_length", UINT32, n_ff),
        ("llama.block_count", UINT32, n_layers),
        ("llama.attention.head_count", UINT32, n_heads),
        ("llama.attention.head_count_kv", UINT32, n_kv_heads),
        ("llama.attention.key_length", UINT32, head_dim),
        ("llama.attention.value_length", UINT32, head_dim),
        ("llama.rope.dimension_count", UINT32, head_dim),
        ("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
    ] + byte_vocabulary()
    tensors = [("token_embd.weight", [n_embd, N_VOCAB]), ("output_norm.weight", [n_embd])]
    for il in range(n_layers):
        tensors += [
            (f"blk.{il}.attn_norm.weight", [n_embd]),
            (f"blk.{il}.attn_q.weight", [n_embd, n_heads * head_dim]),
            (f"blk.{il}.attn_k.weight", [n_embd, n_kv_heads * head_dim]),
            (f"blk.{il}.attn_v.weight", [n_embd, n_kv_heads * head_dim]),
            (f"blk.{il}.attn_output.weight", [n_heads * head_dim, n_embd]),
            (f"blk.{il}.ffn_norm.weight", [n_embd]),
            (f"blk.{il}.ffn_gate.weight", [n_embd, n_ff]),
            (f"blk.{il}.ffn_up.weight", [n_embd, n_ff]),
            (f"blk.{il}.ffn_down.weight", [n_ff, n_embd]),
        ]
    write(path, pairs, tensors)
