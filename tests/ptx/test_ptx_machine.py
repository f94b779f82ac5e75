"""The emulator on small kernels written by hand: warp instructions against plain matrix products, and its checks."""

import numpy as np
import pytest
from ptx_machine import Machine
from ptx_memory import AccessError, GlobalMemory
from ptx_parse import parse

HEAD = ".version 8.4\n.target sm_80\n.visible .entry k(\n{parameters})\n.reqntid {threads}\n{{\n"
REGISTERS = ".reg .pred %p<9>;\n.reg .b16 %rs<9>;\n.reg .b32 %r<99>;\n.reg .b64 %rd<40>;\n"


def execute(body: str, *arrays: np.ndarray, out: np.ndarray, threads: int = 32, order="in step", shared: int = 0):
    """Run ``body`` with pointers to ``arrays`` in %rd1, %rd2, ... and to ``out`` in %rd0; returns what out holds."""
    count = len(arrays) + 1
    parameters = ",\n".join(f".param .u64 k_param_{i}" for i in range(count))
    loads = "".join(f"ld.param.b64 %rd{i}, [k_param_{i}];\n" for i in range(count))
    text = HEAD.format(parameters=parameters, threads=threads) + REGISTERS + loads + "mov.u32 %r0, %tid.x;\n" + body
    memory = GlobalMemory()
    addresses = [memory.place(out, writable=True), *(memory.place(array) for array in arrays)]
    Machine(parse(text + "\nret;\n}\n"), memory, addresses, (1, 1, 1), shared).run(order)
    return memory.fetch(addresses[0])


def lane_address(register: int, pointer: int, size: int) -> str:
    return f"mad.wide.u32 %rd{register}, %r0, {size}, %rd{pointer};\n"


def mma_body(opcode: str, b_registers: int, sparse: bool) -> str:
    b = ", ".join(f"%r{20 + i}" for i in range(b_registers))
    load_b = "v4" if b_registers == 4 else "v2"
    metadata = lane_address(13, 4, 4) + "ld.global.b32 %r30, [%rd13];\n" if sparse else ""
    tail = ", %r30, 0x0" if sparse else ""
    return (
        lane_address(10, 1, 16)
        + lane_address(11, 2, 4 * b_registers)
        + lane_address(12, 3, 16)
        + lane_address(14, 0, 16)
        + metadata
        + "ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%rd10];\n"
        + f"ld.global.{load_b}.b32 {{{b}}}, [%rd11];\n"
        + "ld.global.v4.b32 {%r40, %r41, %r42, %r43}, [%rd12];\n"
        + f"{opcode} {{%r50, %r51, %r52, %r53}}, {{%r10, %r11, %r12, %r13}}, {{{b}}}, "
        + f"{{%r40, %r41, %r42, %r43}}{tail};\n"
        + "st.global.v4.b32 [%rd14], {%r50, %r51, %r52, %r53};\n"
    )


def words(values: np.ndarray) -> np.ndarray:
    """The last dimension's bytes as words."""
    return np.ascontiguousarray(values).view(np.uint8).view(np.uint32)


def pack_a(a: np.ndarray) -> np.ndarray:
    """``[16, k]`` to ``[32, 4]`` words, as the PTX ISA lays out A."""
    n = 4 // a.itemsize  # values a word
    packed = np.zeros((32, 4), np.uint32)
    for lane in range(32):
        g, t = divmod(lane, 4)
        for register in range(4):
            begin = t * n + register // 2 * 4 * n
            packed[lane, register] = words(a[g + register % 2 * 8, begin : begin + n])[0]
    return packed


def pack_b(b: np.ndarray) -> np.ndarray:
    """``[k, 8]`` to ``[32, registers]`` words."""
    n = 4 // b.itemsize
    packed = np.zeros((32, len(b) // (4 * n)), np.uint32)
    for lane in range(32):
        g, t = divmod(lane, 4)
        for register in range(packed.shape[1]):
            begin = t * n + register * 4 * n
            packed[lane, register] = words(b[begin : begin + n, g])[0]
    return packed


def pack_c(c: np.ndarray) -> np.ndarray:
    packed = np.zeros((32, 4), c.dtype)
    for lane in range(32):
        g, t = divmod(lane, 4)
        packed[lane] = [c[g, 2 * t], c[g, 2 * t + 1], c[g + 8, 2 * t], c[g + 8, 2 * t + 1]]
    return packed.view(np.uint32)


def test_mma_of_bytes_is_the_product():
    g = np.random.default_rng(0)
    a, b = g.integers(-128, 128, (16, 32), np.int8), g.integers(-128, 128, (32, 8), np.int8)
    c = g.integers(-(2**20), 2**20, (16, 8), np.int32)
    body = mma_body("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", 2, False)
    given = execute(body, pack_a(a), pack_b(b), pack_c(c), out=np.zeros((32, 4), np.uint32))
    assert (given == pack_c(a.astype(np.int32) @ b.astype(np.int32) + c)).all()


@pytest.mark.parametrize(("satfinite", "wanted"), [(".satfinite", 2**31 - 1), ("", 2**31 - 1 + 32 * 127**2 - 2**32)])
def test_mma_clamps_only_with_satfinite(satfinite, wanted):
    a, b = np.full((16, 32), 127, np.int8), np.full((32, 8), 127, np.int8)
    c = np.full((16, 8), 2**31 - 1, np.int32)
    body = mma_body(f"mma.sync.aligned.m16n8k32.row.col{satfinite}.s32.s8.s8.s32", 2, False)
    given = execute(body, pack_a(a), pack_b(b), pack_c(c), out=np.zeros((32, 4), np.uint32))
    assert (given.view(np.int32) == wanted).all()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_mma_of_halves_is_the_product(kind):
    g = np.random.default_rng(1)
    a, b = g.integers(-8, 9, (16, 16)).astype(np.float32), g.integers(-8, 9, (16, 8)).astype(np.float32)
    c = g.integers(-8, 9, (16, 8)).astype(np.float32)
    narrow = (
        (lambda x: x.astype(np.float16)) if kind == "f16" else (lambda x: (x.view(np.uint32) >> 16).astype(np.uint16))
    )
    body = mma_body(f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32", 2, False)
    given = execute(body, pack_a(narrow(a)), pack_b(narrow(b)), pack_c(c), out=np.zeros((32, 4), np.uint32))
    assert (given == pack_c(a @ b + c)).all()


def sparse(rows: int, k: int, g: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A dense 2:4 matrix, its kept values ``[rows, k / 2]`` and the two places kept in each group."""
    places = np.stack([np.sort(g.permutation(4)[:2]) for _ in range(rows * k // 4)]).reshape(rows, k // 4, 2)
    kept = g.integers(1, 100, (rows, k // 4, 2)).astype(np.int8)
    dense = np.zeros((rows, k // 4, 4), np.int8)
    np.put_along_axis(dense, places, kept, axis=2)
    return dense.reshape(rows, k), kept.reshape(rows, k // 2), places


def metadata_of(places: np.ndarray, eight_bit: bool) -> np.ndarray:
    """One word a lane. Bytes: row g + 8 (t & 1), half t >> 1 of k; 16 bits: rows g and g + 8, lanes 0 and 1 of four."""
    nibbles = (places[..., 0] | places[..., 1] << 2).astype(np.uint32)
    packed = np.zeros(32, np.uint32)
    for lane in range(32):
        g, t = divmod(lane, 4)
        if eight_bit:
            chosen = nibbles[g + 8 * (t & 1), 8 * (t >> 1) : 8 * (t >> 1) + 8]
        elif t < 2:
            chosen = np.concatenate([nibbles[g, 4 * t : 4 * t + 4], nibbles[g + 8, 4 * t : 4 * t + 4]])
        else:
            chosen = np.zeros(8, np.uint32)
        packed[lane] = sum(int(nibble) << 4 * i for i, nibble in enumerate(chosen))
    return packed


def sparse_product(eight_bit: bool, edit_metadata) -> tuple[np.ndarray, np.ndarray]:
    """What mma.sp gives and the dense product, as words of C."""
    g = np.random.default_rng(2)
    k = 64 if eight_bit else 32
    dense, kept, places = sparse(16, k, g)
    b = g.integers(-9, 10, (k, 8)).astype(np.int8)
    c = np.zeros((16, 8), np.int32 if eight_bit else np.float32)
    if not eight_bit:
        dense, kept, b = (array.astype(np.float16) for array in (dense, kept, b))
    shape = "m16n8k64.row.col.s32.s8.s8.s32" if eight_bit else "m16n8k32.row.col.f32.f16.f16.f32"
    body = mma_body(f"mma.sp::ordered_metadata.sync.aligned.{shape}", 4, True)
    metadata = edit_metadata(metadata_of(places, eight_bit))
    given = execute(body, pack_a(kept), pack_b(b), pack_c(c), metadata, out=np.zeros((32, 4), np.uint32))
    return given, pack_c((dense.astype(np.float64) @ b.astype(np.float64)).astype(c.dtype))


@pytest.mark.parametrize("eight_bit", [True, False])
def test_mma_sp_is_the_dense_product(eight_bit):
    given, wanted = sparse_product(eight_bit, lambda metadata: metadata)
    assert (given == wanted).all()


@pytest.mark.parametrize("eight_bit", [True, False])
@pytest.mark.parametrize("bit", range(4))
def test_a_flipped_bit_of_metadata_shows(eight_bit, bit):
    def flip(metadata: np.ndarray) -> np.ndarray:
        metadata[0] ^= np.uint32(1 << bit)
        return metadata

    try:
        given, wanted = sparse_product(eight_bit, flip)
    except AssertionError as refused:
        assert "rising order" in str(refused)  # either outcome shows the defect
    else:
        assert (given != wanted).any()


def test_threads_diverge_and_meet_again():
    body = (
        "setp.lt.u32 %p1, %r0, 5;\nmov.b32 %r1, 0;\n@%p1 bra $L1;\nadd.s32 %r1, %r1, 100;\nbra $L2;\n"
        "$L1: add.s32 %r1, %r1, %r0;\nadd.s32 %r0, %r0, 1;\nsetp.lt.u32 %p2, %r0, 5;\n@%p2 bra $L1;\n"
        "$L2: mov.u32 %r0, %tid.x;\n" + lane_address(10, 0, 4) + "st.global.b32 [%rd10], %r1;\n"
    )
    given = execute(body, out=np.zeros(32, np.int32))
    assert given.tolist() == [10, 10, 9, 7, 4] + [100] * 27


@pytest.mark.parametrize(("kind", "half"), [("f16", 0x3E00), ("bf16", 0x3FC0)])  # 1.5
@pytest.mark.parametrize(
    ("opcode", "operands", "wanted"),
    [("add.rn.f32", "%rs1, %r1", 1.75), ("sub.rn.f32", "%rs1, %r1", 1.25), ("fma.rn.f32", "%rs1, %rs1, %r1", 2.5)],
)
def test_arithmetic_of_a_half_and_a_float(kind, half, opcode, operands, wanted):
    body = f"mov.b16 %rs1, {half};\nmov.b32 %r1, 0f3E800000;\n{opcode}.{kind} %r2, {operands};\n"
    body += lane_address(10, 0, 4) + "st.global.b32 [%rd10], %r2;"
    assert (execute(body, out=np.zeros(32, np.float32)) == wanted).all()


def test_shuffles():
    body = "shfl.sync.bfly.b32 %r1, %r0, 3, 31, -1;\nshfl.sync.up.b32 %r2|%p1, %r0, 1, 0, -1;\n"
    body += "shl.b32 %r2, %r2, 8;\nor.b32 %r1, %r1, %r2;\nselp.b32 %r3, 65536, 0, %p1;\nor.b32 %r1, %r1, %r3;\n"
    body += lane_address(10, 0, 4) + "st.global.b32 [%rd10], %r1;\n"
    given = execute(body, out=np.zeros(32, np.int32))
    lane = np.arange(32)
    wanted = (lane ^ 3) | np.maximum(lane - 1, 0) << 8 | (lane > 0) << 16
    assert given.tolist() == wanted.tolist()


@pytest.mark.parametrize(("order", "right"), [("in step", True), ("forward", False), ("backward", False)])
def test_a_missing_barrier_shows_in_some_order(order, right):
    """Each warp of two writes, and reads what the other wrote."""
    body = "shl.b32 %r1, %r0, 2;\nst.shared.b32 [%r1], %r0;\nxor.b32 %r2, %r1, 128;\nld.shared.b32 %r3, [%r2];\n"
    body += lane_address(10, 0, 4) + "st.global.b32 [%rd10], %r3;\n"
    given = execute(body, out=np.zeros(64, np.int32), threads=64, order=order, shared=256)
    assert (given.tolist() == (np.arange(64) ^ 32).tolist()) == right
    fixed = body.replace("xor", "bar.sync 0;\nxor")
    given = execute(fixed, out=np.zeros(64, np.int32), threads=64, order=order, shared=256)
    assert given.tolist() == (np.arange(64) ^ 32).tolist()


@pytest.mark.parametrize("transposed", [False, True])
def test_stmatrix_stores_matrices_of_halves(transposed):
    """Lane l gives where row l % 8 of matrix l // 8 goes, and of each matrix columns l % 4 * 2 and on of row l // 4."""
    body = "shl.b32 %r1, %r0, 4;\n" + "".join(f"or.b32 %r{2 + i}, %r0, {i + 1 << 20};\n" for i in range(4))
    name = "trans." if transposed else ""
    body += f"stmatrix.sync.aligned.m8n8.x4.{name}shared.b16 [%r1], {{%r2, %r3, %r4, %r5}};\n"
    body += "ld.shared.v4.b32 {%r2, %r3, %r4, %r5}, [%r1];\n" + lane_address(10, 0, 16)
    body += "st.global.v4.b32 [%rd10], {%r2, %r3, %r4, %r5};\n"
    given = execute(body, out=np.zeros((4, 8, 8), np.uint16), shared=512).view(np.uint16).reshape(4, 8, 8)
    wanted = np.zeros((4, 8, 8), np.uint16)
    for i in range(4):
        for lane in range(32):
            wanted[i, lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2] = lane, i + 1 << 4
    assert given.tolist() == (wanted.transpose(0, 2, 1) if transposed else wanted).tolist()


@pytest.mark.parametrize("groups", [0, 1])
def test_an_asynchronous_copy_lands_when_its_group_is_waited_for(groups):
    body = "shl.b32 %r1, %r0, 4;\n" + lane_address(11, 1, 16)
    body += f"cp.async.cg.shared.global [%r1], [%rd11], 16;\ncp.async.commit_group;\ncp.async.wait_group {groups};\n"
    body += "ld.shared.b32 %r2, [%r1];\n" + lane_address(10, 0, 4) + "st.global.b32 [%rd10], %r2;\n"
    source = np.arange(128, dtype=np.int32)
    given = execute(body, source, out=np.zeros(32, np.int32), shared=512)
    assert (given.tolist() == source[::4].tolist()) == (groups == 0)


def test_atomics_add_once_a_thread():
    body = "atom.global.gpu.relaxed.add.u32 %r1, [%rd0], %r0;\nred.global.add.u32 [%rd0+4], 1;\n"
    assert execute(body, out=np.zeros(2, np.uint32)).tolist() == [sum(range(32)), 32]


def test_redux_gives_each_lane_the_largest_of_those_it_names():
    """Even lanes name the even ones, odd lanes the odd ones."""
    body = (
        "and.b32 %r1, %r0, 1;\nsetp.eq.u32 %p1, %r1, 0;\nselp.b32 %r2, 0x55555555, 0xaaaaaaaa, %p1;\n"
        + lane_address(11, 1, 4)
        + "ld.global.b32 %r3, [%rd11];\nredux.sync.max.s32 %r4, %r3, %r2;\n"
        + lane_address(10, 0, 4)
        + "st.global.b32 [%rd10], %r4;\n"
    )
    values = np.random.default_rng(0).integers(-99, 99, 32, dtype=np.int32)
    given = execute(body, values, out=np.zeros(32, np.int32))
    assert given.tolist() == [int(values[i % 2 :: 2].max()) for i in range(32)]


@pytest.mark.parametrize(
    ("access", "message"),
    [
        ("ld.global.b32 %r1, [%rd0+4096];", "global"),
        ("ld.global.v2.b32 {%r1, %r2}, [%rd0+4];", "no multiple"),
        ("st.shared.b32 [256], %r0;", "shared"),
        ("st.global.b32 [%rd1], %r0;", "global"),
    ],
)
def test_bad_accesses_are_refused(access, message):
    body = access.replace("[256]", "[%r9]")
    with pytest.raises(AccessError, match=message):
        execute("mov.b32 %r9, 256;\n" + body, np.zeros(4), out=np.zeros(4, np.int32), shared=256)


def test_an_unknown_instruction_is_refused():
    with pytest.raises(NotImplementedError, match="frobnicate"):
        execute("frobnicate.b32 %r1, %r0;", out=np.zeros(1, np.int32))


@pytest.mark.parametrize("transposed", [False, True])
def test_stmatrix_puts_each_register_where_ldmatrix_would_take_it(transposed):
    """Two matrices 8 x 8: lane 4 g + t holds elements (g, 2 t) and (g, 2 t + 1), or those of the transposed one."""
    matrices = np.arange(128, dtype=np.uint16).reshape(2, 8, 8)
    held = np.stack([m.T if transposed else m for m in matrices]).reshape(2, 32, 2)
    fragments = words(held.transpose(1, 0, 2))[..., 0]  # [32, 2]
    body = (
        lane_address(10, 1, 8)
        + "ld.global.v2.b32 {%r10, %r11}, [%rd10];\n"
        + "shl.b32 %r20, %r0, 4;\n"
        + f"stmatrix.sync.aligned.m8n8.x2{'.trans' if transposed else ''}.shared.b16 [%r20], {{%r10, %r11}};\n"
        + "bar.sync 0;\nshl.b32 %r21, %r0, 3;\n"
        + "ld.shared.v2.b32 {%r30, %r31}, [%r21];\n"
        + lane_address(11, 0, 8)
        + "st.global.v2.b32 [%rd11], {%r30, %r31};\n"
    )
    out = execute(body, fragments, out=np.zeros(128, np.uint16), shared=256)
    assert (out.reshape(2, 8, 8) == matrices).all()
