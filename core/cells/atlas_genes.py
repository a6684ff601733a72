"""Gene tables of the simulated atlas: which gene marks what, as plain data.

The markers are common knowledge of human single-cell work: they can be looked up in PanglaoDB, in
the single-cell section of the Human Protein Atlas and in the annotations of Tabula Sapiens. Which
gene marks which type is real; how strongly, and everything else about the cells, is simulated.
Genes without a biological counterpart are called ``SIM...``. Composition and programmes are in
`atlas_design`, effect sizes in `atlas_biology`, the sampling in `atlas_sampling`.
"""

__all__ = [
    "AGE_DOWN",
    "AGE_UP",
    "CELL_TYPES",
    "FEMALE_GENES",
    "FIBROSIS_GENES",
    "FIBROSIS_STROMAL_GENES",
    "HOUSEKEEPING",
    "INTERFERON_GENES",
    "LINEAGES",
    "MALE_GENES",
    "MARKERS",
    "TISSUES",
    "TISSUE_GENES",
    "TISSUE_STATES",
    "X_ESCAPE_GENES",
]

#: Uberon names, as CELLxGENE writes them.
TISSUES: tuple[str, ...] = (
    "lung",
    "blood",
    "liver",
    "heart",
    "kidney",
    "small intestine",
    "skin of body",
)

#: X-inactivation transcripts: on in every female cell, off in male ones.
FEMALE_GENES: tuple[str, ...] = ("XIST", "TSIX")
#: Genes of the male-specific region of Y that are expressed outside the testis.
MALE_GENES: tuple[str, ...] = (
    "RPS4Y1", "DDX3Y", "UTY", "KDM5D", "EIF1AY", "USP9Y", "ZFY", "TXLNGY", "TMSB4Y",
)  # fmt: skip
#: X genes that escape inactivation and are somewhat higher in women.
X_ESCAPE_GENES: tuple[str, ...] = ("KDM6A", "ZFX", "EIF1AX", "DDX3X", "KDM5C", "PUDP", "SMC1A")

#: Cell type (Cell Ontology name) -> (strong markers, weaker markers).
MARKERS: dict[str, tuple[str, str]] = {
    "CD4-positive, alpha-beta T cell": ("CD4 IL7R", "CD40LG ICOS CTLA4 FOXP3 TNFRSF4 MAL"),
    "CD8-positive, alpha-beta T cell": ("CD8A CD8B CCL5", "GZMK GZMA CST7 NKG7 KLRG1 CRTAM"),
    "natural killer cell": (
        "GNLY NKG7 PRF1 GZMB CCL5",
        "KLRD1 KLRF1 NCAM1 FCGR3A FGFBP2 SPON2 XCL1 XCL2 GZMA CST7 KLRB1",
    ),
    "B cell": (
        "MS4A1 CD79A CD74 HLA-DRA",
        "CD79B CD19 BANK1 TCL1A FCRLA LINC00926 VPREB3 PAX5 CD37 IGHM HLA-DPB1 HLA-DQA1",
    ),
    "plasma cell": (
        "IGHG1 IGKC JCHAIN IGHA1 MZB1",
        "XBP1 SDC1 DERL3 TNFRSF17 PRDX4 SEC11C CD79A FKBP11",
    ),
    "classical monocyte": (
        "S100A8 S100A9 LYZ",
        "VCAN FCN1 S100A12 CD14 CSF3R MNDA CD36 HLA-DRA CD74",
    ),
    "macrophage": (
        "C1QA C1QB C1QC APOE LYZ CD74",
        "CD163 MRC1 MSR1 CD68 MARCO APOC1 GPNMB CD14 HLA-DRA HLA-DPB1",
    ),
    "mast cell": ("TPSAB1 TPSB2 CPA3", "KIT MS4A2 HPGDS GATA2 HDC TPSD1 SLC18A2 LTC4S"),
    "conventional dendritic cell": (
        "HLA-DRA CD74 HLA-DPB1 HLA-DQA1",
        "CD1C FCER1A CLEC10A CLEC9A XCR1 IRF8 FLT3 LYZ",
    ),
    "plasmacytoid dendritic cell": (
        "GZMB JCHAIN IRF7 TCF4",
        "LILRA4 CLEC4C IL3RA SERPINF1 PTGDS IRF8 CD74 HLA-DRA",
    ),
    "endothelial cell": (
        "PECAM1 CLDN5 VWF CAV1",
        "CDH5 KDR EGFL7 EMCN ERG RAMP2 CLEC14A ESAM AQP1 TIE1",
    ),
    "fibroblast": (
        "DCN LUM COL1A2 COL3A1",
        "COL1A1 PDGFRA MFAP5 C7 FBLN1 PDPN CFD ADH1B SFRP2 SPARC",
    ),
    "smooth muscle cell": ("ACTA2 TAGLN MYH11", "DES CNN1 MYLK LMOD1 SYNPO2 ACTG2 SPARC MYL9"),
    "pericyte": ("RGS5 ACTA2", "CSPG4 PDGFRB KCNJ8 ABCC9 NDUFA4L2 HIGD1B NOTCH3 COX4I2 SPARC MYL9"),
    "pulmonary alveolar type 2 cell": (
        "SFTPC SFTPB SFTPA1 SFTPA2",
        "NAPSA ABCA3 LAMP3 SFTPD PGC SLC34A2 LPCAT1",
    ),
    "club cell": ("SCGB1A1 SCGB3A1 BPIFB1", "SCGB3A2 MUC5B LCN2 CYP2F1 MSMB SLPI SFTPB"),
    "hepatocyte": (
        "ALB APOA1 APOA2 TTR SERPINA1",
        "APOC3 FGB FGA TF AHSG AMBP HP CYP2E1 CYP3A4 ASS1",
    ),
    "cardiac muscle cell": (
        "MYH7 TNNT2 MB ACTC1",
        "MYL2 TNNI3 MYH6 TTN RYR2 NPPA MYL7 PLN CKM",
    ),
    "epithelial cell of proximal tubule": (
        "GPX3 ALDOB",
        "LRP2 CUBN SLC34A1 SLC22A6 SLC22A8 SLC5A2 ANPEP MIOX PDZK1 SLC13A3",
    ),
    "enterocyte": (
        "FABP1 FABP2 RBP2 ALDOB",
        "APOA4 SI ALPI SLC15A1 VIL1 ANPEP KRT20 PHGR1 APOA1",
    ),
    "intestinal goblet cell": ("MUC2 TFF3 FCGBP", "ZG16 SPINK4 CLCA1 AGR2 REP15 ITLN1 SLPI"),
    "keratinocyte": (
        "KRT14 KRT5 KRT1 KRT10",
        "DMKN KRTDAP DSP LGALS7 TP63 COL17A1 DSC3 PERP S100A2",
    ),
    "melanocyte": ("PMEL MLANA DCT", "TYRP1 TYR MITF QPCT SLC45A2 GPNMB"),
}  # fmt: skip

CELL_TYPES: tuple[str, ...] = tuple(MARKERS)

_T = ("CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell")
_LYMPHOID = (*_T, "natural killer cell", "B cell", "plasma cell")
_MYELOID = (
    "classical monocyte",
    "macrophage",
    "mast cell",
    "conventional dendritic cell",
    "plasmacytoid dendritic cell",
)
_MURAL = ("smooth muscle cell", "pericyte")
_STROMAL = ("endothelial cell", "fibroblast", *_MURAL)
_EPITHELIAL = (
    "pulmonary alveolar type 2 cell",
    "club cell",
    "epithelial cell of proximal tubule",
    "enterocyte",
    "intestinal goblet cell",
    "keratinocyte",
)

#: Lineage -> (cell types, genes that all of them share).
LINEAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "leukocyte": ((*_LYMPHOID, *_MYELOID), "PTPRC CD52 CORO1A LAPTM5 CD53 ARHGDIB RAC2"),
    "T cell": (_T, "CD3D CD3E CD3G TRAC CD2 IL32 CCR7 SELL LEF1 TCF7 LTB"),
    "T or NK cell": ((*_T, "natural killer cell"), "CD247 CD7 CTSW"),
    "mononuclear phagocyte": (
        ("classical monocyte", "macrophage", "conventional dendritic cell"),
        "TYROBP FCER1G AIF1 CST3 CTSS",
    ),
    "monocyte or macrophage": (
        ("classical monocyte", "macrophage"),
        "IL1B CXCL8 CCL3 CCL4 TNFAIP3 CXCL2",
    ),
    "stromal": (_STROMAL, "IGFBP7 SPARCL1 COL4A1 COL4A2 CALD1 TIMP3"),
    "epithelial": (_EPITHELIAL, "EPCAM KRT8 KRT18 KRT19 CDH1 CLDN4 ELF3"),
    "cycling compartment": (
        ("B cell", "macrophage", "keratinocyte", "enterocyte", *_T),
        "MKI67 TOP2A STMN1 TYMS HMGB2 CDK1 UBE2C PCNA",
    ),
}

#: Genes that every cell of a tissue carries at a low level: residency, signals, spill-over.
TISSUE_GENES: dict[str, str] = {
    "lung": "AGER CAV2 FOXF1 TBX4 TBX5-AS1 HOPX WIF1 SFTA2",
    "blood": "HBB HBA1 HBA2 PPBP PF4 S1PR1 S1PR5 KLF2",
    "liver": "CRP ORM1 SAA1 FGG APOH HAMP RBP4 VTN",
    "heart": "NPPB MYL3 TBX20 GATA4 CSRP3 HAND2 XIRP2 NKX2-5",
    "kidney": "UMOD SPP1 CDH16 PAX8 HNF1B DEFB1 WT1",
    "small intestine": "REG1A REG3A OLFM4 CDX2 PIGR LCN15 DEFA5 MTTP",
    "skin of body": "KRT2 LOR FLG SBSN CCL27 HOXC10 DCD KRT6A",
}

#: (tissue, cell type) -> genes of the state that this type takes on there.
TISSUE_STATES: dict[tuple[str, str], str] = {
    ("lung", "macrophage"): "FABP4 PPARG MCEMP1 MARCO",
    ("liver", "macrophage"): "CD5L VSIG4 TIMD4 MARCO",
    ("heart", "macrophage"): "LYVE1 FOLR2 SELENOP",
    ("skin of body", "conventional dendritic cell"): "CD207 CD1A",
    ("lung", "endothelial cell"): "EDNRB HPGD CA4 FCN3",
    ("liver", "endothelial cell"): "CLEC4G CLEC4M STAB2 FCN3",
    ("kidney", "endothelial cell"): "EHD3 PLVAP IGFBP5",
    ("heart", "endothelial cell"): "FABP4 BTNL9 IGFBP3",
    ("lung", "fibroblast"): "TCF21 NPNT SCN7A",
    ("heart", "fibroblast"): "DLK1 GSN SCN7A",
    ("small intestine", "fibroblast"): "ADAMDEC1 CCL11 F3",
    ("skin of body", "fibroblast"): "APCDD1 WIF1 COL23A1",
    ("liver", "natural killer cell"): "CXCR6 EOMES XCL1",
    ("lung", "CD8-positive, alpha-beta T cell"): "CXCR6 ITGA1 ZNF683",
    ("small intestine", "CD8-positive, alpha-beta T cell"): "ITGAE ITGA1 CD160",
    ("skin of body", "CD4-positive, alpha-beta T cell"): "CCR4 CCR10",
    ("small intestine", "plasma cell"): "IGHA2",
}

#: Type I interferon response: up in the simulated lupus, in every cell.
INTERFERON_GENES: tuple[str, ...] = (
    "ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "OAS1", "IFI44L", "LY6E", "XAF1", "IFI27", "STAT1",
    "IFITM1", "EPSTI1", "RSAD2", "USP18", "SIGLEC1",
)  # fmt: skip
#: Tissue repair and matrix signals: up in the simulated scleroderma, moderately in every cell.
FIBROSIS_GENES: tuple[str, ...] = (
    "TIMP1", "FN1", "TGFBI", "CCL18", "SERPINE1", "LGALS1", "S100A6", "CHI3L1", "MMP7", "CCN2",
    "TNC", "IL6", "OSMR",
)  # fmt: skip
#: Up in the stromal cells of the simulated scleroderma.
FIBROSIS_STROMAL_GENES: tuple[str, ...] = (
    "POSTN", "CTHRC1", "COL1A1", "COL1A2", "COL3A1", "SPARC", "COMP", "LOX", "ASPN", "COL5A1",
)  # fmt: skip

#: Weak drifts with age; directions as often reported for human tissues, sizes invented.
AGE_UP: tuple[str, ...] = (
    "CDKN2A", "CDKN1A", "GDF15", "GLB1", "HLA-C", "LMNA", "B2M", "IGFBP2", "SIM-AGE-01",
    "SIM-AGE-02", "SIM-AGE-03", "SIM-AGE-04", "SIM-AGE-05", "SIM-AGE-06",
)  # fmt: skip
AGE_DOWN: tuple[str, ...] = (
    "LMNB1", "CCR7", "LEF1", "SIRT1", "SIM-AGE-07", "SIM-AGE-08", "SIM-AGE-09", "SIM-AGE-10",
    "SIM-AGE-11", "SIM-AGE-12",
)  # fmt: skip

#: Abundant in all cells: ribosome, mitochondrion, cytoskeleton, metabolism.
HOUSEKEEPING: tuple[str, ...] = (
    "MALAT1", "NEAT1", "B2M", "ACTB", "GAPDH", "EEF1A1", "TPT1", "TMSB4X", "TMSB10", "FTL", "FTH1",
    "HLA-A", "HLA-B", "HLA-C", "UBC", "UBB", "RACK1", "FAU", "PTMA", "NACA", "BTF3", "EIF1",
    "PFN1", "CFL1", "MYL6", "H3-3B", "SERF2", "OAZ1", "GPX4", "PPIA", "RPLP0", "RPLP1", "RPL3",
    "RPL10", "RPL13", "RPL41", "RPL32", "RPS2", "RPS3", "RPS6", "RPS12", "RPS18", "RPS27", "MT-CO1",
    "MT-CO2", "MT-CO3", "MT-ND1", "MT-ND4", "MT-CYB", "MT-ATP6", "CALM1", "HNRNPA1", "VIM",
    "YWHAZ", "HSP90AB1", "TOMM7", "CHCHD2", "PRDX1", "COX4I1", "SUMO2",
)  # fmt: skip
