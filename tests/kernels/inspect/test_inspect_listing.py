"""Reading loops out of machine code: the layouts that compilers produce, written by hand."""

from recpress_kernels.inspect.listing import AMDGCN, SASS, Listing


def sass(text: str) -> Listing:
    """Lines of SASS as nvdisasm prints them, from shorthand: labels end with a colon."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return Listing(
        "\n".join(x if x.endswith(":") else f"        /*{i:04x}*/    {x} ;" for i, x in enumerate(lines)), SASS
    )


def test_the_loop_that_multiplies_is_found_behind_others():
    listing = sass("""
        MOV R1, R2
        .L_x_0:
        LDG.E.128 R4, [R2.64]
        @P0 BRA `(.L_x_0)
        .L_x_1:
        LDG.E.128 R4, [R2.64]
        LDG.E.U8 R4, [R2.64]
        IMMA.16832.S8.S8 R4, R4.ROW, R8.COL, R4
        IMMA.16832.S8.S8 R8, R4.ROW, R8.COL, R8
        @!P1 BRA `(.L_x_1)
        IMMA.16832.S8.S8 R8, R4.ROW, R8.COL, R8
        EXIT
        .L_x_2:
        BRA `(.L_x_2)
    """)
    loop = listing.hottest_loop()
    assert len(listing.body(loop)) == 5
    assert listing.mma_counts(loop) == {"IMMA.16832": 2}
    assert listing.load_widths(loop) == {"1": 1, "16": 1}
    assert listing.mma_counts() == {"IMMA.16832": 3}


def test_waiting_laid_out_behind_the_code_is_no_part_of_the_loop():
    """As sm_90 code waits for a barrier: the slow way lies behind EXIT and comes back into the middle."""
    listing = sass("""
        .L_x_0:
        SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R5
        @!P0 BRA `(.L_x_2)
        .L_x_1:
        IGMMA.64x128x32.S8.S8 R88, gdesc[UR28], R88
        UTMALDG.2D [UR8], [UR18]
        BRA.U UP0, `(.L_x_0)
        EXIT
        .L_x_2:
        SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R5
        @P0 BRA `(.L_x_1)
        BRA `(.L_x_2)
    """)
    loop = listing.hottest_loop()
    assert listing.body(loop) == [
        "SYNCS.PHASECHK.TRANS64.TRYWAIT",
        "BRA",
        "IGMMA.64x128x32.S8.S8",
        "UTMALDG.2D",
        "BRA.U",
    ]
    assert listing.load_widths(loop) == {"tma": 1}


def test_the_innermost_of_nested_loops_and_the_one_with_most_work():
    listing = sass("""
        .L_x_0:
        IMMA.16832.S8.S8 R4, R4.ROW, R8.COL, R4
        .L_x_1:
        IGMMA.64x128x32.S8.S8 R88, gdesc[UR28], R88
        @P0 BRA `(.L_x_1)
        .L_x_2:
        IMMA.16832.S8.S8 R4, R4.ROW, R8.COL, R4
        IMMA.16832.S8.S8 R4, R4.ROW, R8.COL, R4
        @P0 BRA `(.L_x_2)
        @P1 BRA `(.L_x_0)
        EXIT
    """)
    assert listing.mma_counts(listing.hottest_loop()) == {"IGMMA.64x128x32": 1}


def test_straight_code_has_no_loop():
    listing = sass("IMMA.16832.S8.S8 R4, R4.ROW, R8.COL, R4\nEXIT\n.L_x_0:\nBRA `(.L_x_0)")
    assert listing.hottest_loop() is None


def test_amd_loops_entered_in_the_middle():
    listing = Listing(
        """
        s_branch .LBB0_2
.LBB0_1:                                ;   in Loop: Header=BB0_2 Depth=1
        global_load_dwordx4 v[0:3], v[4:5], off
.LBB0_2:                                ; =>This Inner Loop Header: Depth=1
        v_mfma_i32_16x16x32_i8 v[8:11], v[24:25], v[18:19], v[8:11]
        s_cbranch_execz .LBB0_4
        global_load_ubyte v1, v[4:5], off
        s_branch .LBB0_1
.LBB0_4:
        s_endpgm
""",
        AMDGCN,
    )
    loop = listing.hottest_loop()
    assert listing.mma_counts(loop) == {"v_mfma_i32_16x16x32_i8": 1}
    assert len(listing.body(loop)) == 5
    assert listing.load_widths(loop) == {"1": 1, "16": 1}
