"""embedding_bag_rows on a GPU: one launch for all tables, a program for a few bags, or a few rows, of one of them.

Tables are described in memory, FIELDS int64 each, so that they may differ in rows, width and bits. Rows are read as
bytes, ALIGN of them at a time. Products and sums are those of reference.py, in its order.

Nothing is read through an index outside its table: what it goes into becomes NaN, and so does a bag whose offsets are
none; where NaN is written, ``bad`` is raised. Imports triton alone.
"""

import triton
import triton.language as tl

FIELDS = tl.constexpr(11)
ADDRESS, ROWS, STRIDE, WIDTH, DIM, CODE_BITS, COLUMN, BEGIN, IDS, OOV, REMAP = (tl.constexpr(i) for i in range(11))
"""Where a table's first row is, how many there are, their distance in bytes, bytes and values of one, bits of a value,
the column of its indices, and the first column that it writes; how many ids it has, what an id outside becomes or -1,
and the address of a remap or 0, as in map_ids/reference.py. ROWS to BEGIN are below 2^31."""


@triton.jit
def bags_kernel(
    fields_ptr,  # [T, FIELDS] int64
    indices_ptr,  # [L] int32 or int64
    offsets_ptr,  # [T * B + 1] as indices
    weights_ptr,  # [L] float32, or None
    bad_ptr,  # [BLOCK_D] int32: 1 in some of them where NaN was written, else left as they are
    out_ptr,  # [B, OUT_WIDTH] float32
    B,
    L,
    OUT_WIDTH,
    MEAN: tl.constexpr,
    MAPPED: tl.constexpr,  # indices are ids, mapped as the fields tell; else the last three fields are not read
    BITS: tl.constexpr,  # of every table's values, or 0: as its fields tell
    ALIGN: tl.constexpr,  # 1, 4 or 16: divides addresses and strides of tables; from 4 on, 4 divides widths
    OUT_ALIGN: tl.constexpr,  # divides OUT_WIDTH, and every table's dim and first column
    UNROLL: tl.constexpr,  # how many rows of a bag are on their way at once
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    table = fields_ptr + tl.program_id(1).to(tl.int64) * FIELDS
    rb = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    bag = tl.program_id(1).to(tl.int64) * B + rb
    last = tl.num_programs(1).to(tl.int64) * B - 1
    begin = tl.load(offsets_ptr + bag, mask=rb < B, other=0).to(tl.int64)
    end = tl.load(offsets_ptr + bag + 1, mask=rb < B, other=0).to(tl.int64)
    wrong = (begin < 0) | (begin > end) | (end > L) | ((bag == 0) & (begin != 0)) | ((bag == last) & (end != L))
    wrong |= end - begin > 0x7FFFFFF0  # counted in 32 bits
    length = tl.where(wrong, 0, end - begin).to(tl.int32)
    longest = tl.max(length, axis=0)
    acc = _sum(table, indices_ptr, weights_ptr, begin, length, longest, MAPPED, BITS, ALIGN, UNROLL, BLOCK_B, BLOCK_D)
    if MEAN:
        number = tl.maximum(length, 1).to(tl.float32)
        acc = tl.div_rn(acc, tl.broadcast_to(number[:, None], [BLOCK_B, BLOCK_D]))
    acc = tl.where(wrong[:, None], float("nan"), acc)
    _store(table, bad_ptr, out_ptr, acc, rb, B, None, OUT_WIDTH, OUT_ALIGN, BLOCK_D)


@triton.jit
def rows_kernel(
    fields_ptr,  # [T, FIELDS] int64
    indices_ptr,  # [B, C] int32 or int64, rows stride_ib and columns stride_ic apart
    front_ptr,  # [B, F] float32, rows stride_fb apart, or None: no programs behind those of the tables, to copy it
    bad_ptr,  # as in bags_kernel
    out_ptr,  # [B, OUT_WIDTH] float32
    B,
    F,
    OUT_WIDTH,
    stride_ib,
    stride_ic,
    stride_fb,
    MAPPED: tl.constexpr,  # these as in bags_kernel, and OUT_ALIGN divides F too
    BITS: tl.constexpr,
    ALIGN: tl.constexpr,
    OUT_ALIGN: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rb = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    if front_ptr is not None:
        last = tl.num_programs(1) - 1
        if tl.program_id(1) == last:
            _copy(front_ptr, out_ptr, rb, B, F, OUT_WIDTH, stride_fb, BLOCK_D)
            return
    table = fields_ptr + tl.program_id(1).to(tl.int64) * FIELDS
    at = rb.to(tl.int64) * stride_ib + tl.load(table + COLUMN) * stride_ic
    one = (rb < B).to(tl.int32)
    values = _sum(table, indices_ptr, None, at, one, 1, MAPPED, BITS, ALIGN, 1, BLOCK_B, BLOCK_D)
    _store(table, bad_ptr, out_ptr, values, rb, B, F, OUT_WIDTH, OUT_ALIGN, BLOCK_D)


@triton.jit
def _sum(
    table,  # its fields
    indices_ptr,
    weights_ptr,  # or None
    begin,  # [BB] int64: where a bag's indices begin
    length,  # [BB] int32
    longest,  # of the lengths
    MAPPED: tl.constexpr,
    BITS: tl.constexpr,
    ALIGN: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sums of bags, float32 ``[BB, BLOCK_D]``: NaN in those that have an index outside the table."""
    if BITS == 0:
        if tl.load(table + CODE_BITS) == 8:
            acc = _sum_of(
                table, indices_ptr, weights_ptr, begin, length, longest, MAPPED, 8, ALIGN, UNROLL, BLOCK_B, BLOCK_D
            )
        else:
            acc = _sum_of(
                table, indices_ptr, weights_ptr, begin, length, longest, MAPPED, 4, ALIGN, UNROLL, BLOCK_B, BLOCK_D
            )
    else:
        acc = _sum_of(
            table, indices_ptr, weights_ptr, begin, length, longest, MAPPED, BITS, ALIGN, UNROLL, BLOCK_B, BLOCK_D
        )
    return acc


@triton.jit
def _sum_of(
    table,
    indices_ptr,
    weights_ptr,
    begin,
    length,
    longest,
    MAPPED: tl.constexpr,
    BITS: tl.constexpr,
    ALIGN: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = tl.load(table + ROWS).to(tl.int32)
    width = tl.load(table + WIDTH).to(tl.int32)
    stride = tl.multiple_of(tl.load(table + STRIDE).to(tl.int32), ALIGN).to(tl.int64)
    address = tl.multiple_of(tl.load(table + ADDRESS), ALIGN).to(tl.pointer_type(tl.uint8))
    address = tl.multiple_of(address, ALIGN)
    # Whole vectors, and so beyond the codes: into the row's pair, and where rows are padded into their padding.
    readable = (width + (ALIGN - 1)) // ALIGN * ALIGN
    byte = tl.program_id(2) * (BLOCK_D * BITS // 8) + tl.arange(0, BLOCK_D * BITS // 8)
    acc = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for j in range(0, longest, UNROLL):
        # Loads before sums, so that all rows of a round are on their way at once.
        indices, weights = (), ()
        for u in tl.static_range(UNROLL):
            indices += (tl.load(indices_ptr + begin + (j + u), mask=j + u < length, other=0),)
            if weights_ptr is not None:
                weights += (tl.load(weights_ptr + begin + (j + u), mask=j + u < length, other=0.0),)
        if MAPPED:
            mapped = ()
            for u in tl.static_range(UNROLL):
                mapped += (_row_of(table, indices[u].to(tl.int64), j + u < length),)
            indices = mapped
        reads, codes, pairs = (), (), ()
        for u in tl.static_range(UNROLL):
            read = (j + u < length) & (indices[u] >= 0) & (indices[u] < rows)
            at = address + indices[u].to(tl.int32).to(tl.int64) * stride
            mask = read[:, None] & (byte < readable)[None, :]
            reads += (read,)
            codes += (tl.load(at[:, None] + byte[None, :], mask=mask, other=0),)
            pairs += (_pair(at + (width - 4), read, ALIGN),)
        for u in tl.static_range(UNROLL):
            code = codes[u]
            scale, bias = pairs[u]
            if BITS == 4:
                code = tl.interleave(code & 15, code >> 4)
            bias = tl.where((j + u < length) ^ reads[u], float("nan"), bias)  # of an index outside the table
            # The product of 11 and 8 bits is exact: in one instruction it is the same sum.
            values = tl.fma(code.to(tl.float32), scale[:, None], bias[:, None])
            if weights_ptr is not None:
                values *= weights[u][:, None]
            acc += values  # 0 where the bag has no more indices; and a sum is never -0
    return acc


@triton.jit
def _row_of(table, index, here):
    """Ids int64 ``[BB]`` as rows of the table, -1 for those that it does not have."""
    inside = (index >= 0) & (index < tl.load(table + IDS))
    row = tl.where(inside, index, tl.load(table + OOV))
    remap = tl.load(table + REMAP)
    remapped = remap + tl.zeros_like(row) != 0
    at = remap.to(tl.pointer_type(tl.int32)) + row
    stored = tl.load(at, mask=here & (row >= 0) & remapped, other=-1)
    return tl.where(remapped, stored.to(tl.int64), row)


@triton.jit
def _pair(at, read, ALIGN: tl.constexpr):
    """Scale and bias, float32 ``[BB]``, of rows whose last four bytes are at ``at``."""
    if ALIGN >= 4:
        word = tl.load(at.to(tl.pointer_type(tl.int32), bitcast=True), mask=read, other=0)
    else:
        word = tl.load(at, mask=read, other=0).to(tl.int32)
        for byte in tl.static_range(1, 4):
            word |= tl.load(at + byte, mask=read, other=0).to(tl.int32) << (8 * byte)
    scale = word.to(tl.int16).to(tl.float16, bitcast=True)
    bias = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return scale.to(tl.float32), bias.to(tl.float32)


@triton.jit
def _store(table, bad_ptr, out_ptr, values, rb, B, front, OUT_WIDTH, OUT_ALIGN: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store a block in the table's columns of out, which begin behind ``front`` others."""
    local = tl.arange(0, BLOCK_D)
    r = tl.program_id(2) * BLOCK_D + local
    dim = tl.multiple_of(tl.load(table + DIM).to(tl.int32), OUT_ALIGN)
    begin = tl.multiple_of(tl.load(table + BEGIN), OUT_ALIGN)
    if front is not None:
        begin = tl.multiple_of(begin + front, OUT_ALIGN)
    row = tl.multiple_of(rb.to(tl.int64) * OUT_WIDTH, OUT_ALIGN)
    at = out_ptr + row[:, None] + (begin + r)[None, :]
    inside = (rb < B)[:, None] & (r < dim)[None, :]
    tl.store(at, values, mask=inside)
    # As wide as the block, so that each thread stores where its values are and nothing is exchanged.
    bad = bad_ptr + tl.broadcast_to(local[None, :], inside.shape)
    tl.store(bad, 1, mask=inside & (values != values))


@triton.jit
def _copy(front_ptr, out_ptr, rb, B, F, OUT_WIDTH, stride_fb, BLOCK_D: tl.constexpr):
    """Copy rows ``rb`` of the front to the first columns of out."""
    row = rb.to(tl.int64)[:, None]
    for f in range(tl.program_id(2) * BLOCK_D, F, tl.num_programs(2) * BLOCK_D):
        r = f + tl.arange(0, BLOCK_D)[None, :]
        inside = (rb < B)[:, None] & (r < F)
        front = tl.load(front_ptr + row * stride_fb + r, mask=inside, other=0.0)
        tl.store(out_ptr + row * OUT_WIDTH + r, front, mask=inside)
