"""The invented part of the simulated atlas: who is in it, which genes move together, and where.

Tables only. `atlas_biology` turns them, with the marker tables of `atlas_genes`, into the numbers
of an `AtlasTruth`.
"""

from core.cells.atlas_genes import TISSUES

__all__ = [
    "COMPOSITION",
    "DEPTH_FACTORS",
    "DISEASES",
    "DISEASE_WEIGHTS",
    "FIBROTIC",
    "FLARE",
    "LEFT_OUT",
    "NORMAL",
    "PROGRAMMES",
    "SEX_WEIGHTS",
    "TISSUE_WEIGHTS",
]

NORMAL = "normal"
#: An interferon-driven state, named with the Mondo label that CELLxGENE uses.
FLARE = "systemic lupus erythematosus"
#: A fibrotic state of many organs.
FIBROTIC = "systemic scleroderma"
DISEASES: tuple[str, ...] = (NORMAL, FLARE, FIBROTIC)

#: Share of donors per disease; both diseases are more frequent in women, as they are in fact.
DISEASE_WEIGHTS: dict[str, float] = {NORMAL: 0.5, FLARE: 0.25, FIBROTIC: 0.25}
SEX_WEIGHTS: dict[str, dict[str, float]] = {
    NORMAL: {"female": 0.46, "male": 0.54},
    FLARE: {"female": 0.65, "male": 0.35},
    FIBROTIC: {"female": 0.6, "male": 0.4},
}

TISSUE_WEIGHTS: dict[str, float] = dict(
    zip(TISSUES, (0.22, 0.24, 0.13, 0.12, 0.11, 0.1, 0.08), strict=True)
)

_SHORT = {
    "CD4": "CD4-positive, alpha-beta T cell",
    "CD8": "CD8-positive, alpha-beta T cell",
    "NK": "natural killer cell",
    "B": "B cell",
    "plasma": "plasma cell",
    "mono": "classical monocyte",
    "mac": "macrophage",
    "mast": "mast cell",
    "cDC": "conventional dendritic cell",
    "pDC": "plasmacytoid dendritic cell",
    "endo": "endothelial cell",
    "fib": "fibroblast",
    "smc": "smooth muscle cell",
    "peri": "pericyte",
    "AT2": "pulmonary alveolar type 2 cell",
    "club": "club cell",
    "hep": "hepatocyte",
    "cardio": "cardiac muscle cell",
    "PT": "epithelial cell of proximal tubule",
    "entero": "enterocyte",
    "goblet": "intestinal goblet cell",
    "kera": "keratinocyte",
    "melano": "melanocyte",
}


def _composition(**parts: float) -> dict[str, float]:
    """Shares of the cell types of a tissue, from short names."""
    total = sum(parts.values())
    return {_SHORT[name]: round(weight / total, 6) for name, weight in parts.items()}


#: Tissue -> cell type -> share of its cells. Absent pairs are biologically impossible here.
COMPOSITION: dict[str, dict[str, float]] = {
    "lung": _composition(
        CD4=9, CD8=9, NK=5, B=3, plasma=2, mono=7, mac=20, mast=2, cDC=3, pDC=0.4, endo=12,
        fib=8, smc=3, peri=2, AT2=12, club=3,
    ),
    "blood": _composition(CD4=32, CD8=19, NK=12, B=10, plasma=0.8, mono=23, cDC=2, pDC=0.8),
    "liver": _composition(
        CD4=5, CD8=10, NK=11, B=3, plasma=2, mono=6, mac=13, mast=0.5, cDC=1.5, endo=12, fib=4,
        smc=1, hep=31,
    ),
    "heart": _composition(
        CD4=3, CD8=3, NK=2, B=0.6, mono=3, mac=9, mast=1, cDC=0.6, endo=20, fib=19, smc=4,
        peri=10, cardio=25,
    ),
    "kidney": _composition(
        CD4=7, CD8=8, NK=5, B=4, plasma=2, mono=4, mac=8, mast=0.5, cDC=1.5, endo=13, fib=6,
        smc=2, peri=4, PT=35,
    ),
    "small intestine": _composition(
        CD4=10, CD8=12, NK=1.5, B=7, plasma=14, mono=1, mac=7, mast=3, cDC=2, endo=6, fib=9,
        smc=4, peri=1, entero=18, goblet=5,
    ),
    "skin of body": _composition(
        CD4=9, CD8=6, NK=1, B=0.6, mono=1, mac=7, mast=3, cDC=5, endo=10, fib=18, smc=3, peri=5,
        kera=29, melano=2.4,
    ),
}  # fmt: skip

#: Sequencing depth of a type relative to the median; 1 where absent.
DEPTH_FACTORS: dict[str, float] = {
    _SHORT["CD4"]: 0.8,
    _SHORT["CD8"]: 0.8,
    _SHORT["NK"]: 0.78,
    _SHORT["B"]: 0.85,
    _SHORT["plasma"]: 1.15,
    _SHORT["mac"]: 1.4,
    _SHORT["mast"]: 0.9,
    _SHORT["fib"]: 1.1,
    _SHORT["AT2"]: 1.3,
    _SHORT["hep"]: 1.45,
    _SHORT["cardio"]: 1.4,
    _SHORT["PT"]: 1.25,
    _SHORT["entero"]: 1.2,
    _SHORT["kera"]: 1.25,
}

#: Combinations that exist in the simulated world and are absent from the data set on purpose.
LEFT_OUT: tuple[dict[str, str], ...] = (
    {"sex": "female", "tissue": "lung", "disease": FIBROTIC},
    {"tissue": "kidney", "cell_type": _SHORT["plasma"]},
    {"tissue": "liver", "cell_type": _SHORT["mono"], "disease": FLARE},
    {"sex": "male", "tissue": "skin of body", "disease": FLARE},
)

_GLYCOLYSIS = "PGK1 LDHA ENO1 PKM TPI1"
_RESPIRATION = "COX7C NDUFA4 UQCRB COX6C ATP5MC2"
_SWITCH_A = "SIM-SWITCH-01 SIM-SWITCH-02 SIM-SWITCH-03 SIM-SWITCH-04"
_SWITCH_B = "SIM-SWITCH-05 SIM-SWITCH-06 SIM-SWITCH-07 SIM-SWITCH-08"
_PAIR_A = "SIM-PAIR-01 SIM-PAIR-02 SIM-PAIR-03"
_PAIR_B = "SIM-PAIR-04 SIM-PAIR-05 SIM-PAIR-06"

Variant = tuple[dict[str, tuple[str, ...]], str, str]
"""Where a programme is active (phenotype -> values), genes that rise with it, genes that fall."""

#: Name -> variants; a cell follows the first variant whose context it meets, else none. No gene is
#: in two programmes, so that the sign of a pair within a context is the product of two loadings.
PROGRAMMES: dict[str, tuple[Variant, ...]] = {
    # everywhere
    "immediate early response": (
        ({}, "FOS FOSB JUN JUNB EGR1 DUSP1 IER2 ZFP36 ATF3", "TXNIP PIK3IP1"),
    ),
    "heat shock": (({}, "HSPA1A HSPA1B DNAJB1 HSPH1 HSPE1 HSPD1 BAG3", "SELENOW"),),
    "cytoplasm against nucleus": (({}, "RPL3 RPL10 RPL13 RPL32 RPS3 RPS6 RPS12", "MALAT1 NEAT1"),),
    # one kind of cell
    "cell cycle": (
        (
            {
                "cell_type": (
                    _SHORT["CD4"],
                    _SHORT["CD8"],
                    _SHORT["B"],
                    _SHORT["mac"],
                    _SHORT["kera"],
                    _SHORT["entero"],
                )
            },
            "MKI67 TOP2A STMN1 TYMS HMGB2 CDK1 UBE2C PCNA",
            "BTG1 CDKN1B",
        ),
    ),
    "effector against naive": (
        ({"cell_type": (_SHORT["CD8"],)}, "CCL5 GZMK GZMA CST7 NKG7", "CCR7 SELL LEF1 TCF7 LTB"),
    ),
    "inflammation": (
        (
            {"cell_type": (_SHORT["mac"],)},
            "IL1B CXCL8 CCL3 CCL4 TNFAIP3 CXCL2",
            "CD163 MRC1 MSR1",
        ),
        ({"cell_type": (_SHORT["mono"],)}, "IL1B CXCL8 CCL3 CCL4 TNFAIP3 CXCL2", "VCAN CD36"),
    ),
    "liver zonation": (
        ({"cell_type": (_SHORT["hep"],)}, "CYP2E1 CYP3A4 CYP1A2 ADH4", "ASS1 HAL PCK1 HP SDS"),
    ),
    "artery against vein": (
        ({"cell_type": (_SHORT["endo"],)}, "GJA5 HEY1 SEMA3G EFNB2 FBLN5", "VWF ACKR1 SELE SELP"),
    ),
    # opposite signs in two kinds of cell
    "metabolic switch": (
        (
            {"cell_type": (_SHORT["CD4"], _SHORT["CD8"], _SHORT["NK"])},
            f"{_GLYCOLYSIS} {_RESPIRATION}",
            "",
        ),
        ({"cell_type": (_SHORT["mono"], _SHORT["mac"])}, _GLYCOLYSIS, _RESPIRATION),
    ),
    "simulated pair": (
        ({"cell_type": (_SHORT["endo"],)}, f"{_PAIR_A} {_PAIR_B}", ""),
        ({"cell_type": (_SHORT["fib"],)}, _PAIR_A, _PAIR_B),
    ),
    # opposite signs in two tissues
    "simulated switch": (
        ({"tissue": ("lung", "heart")}, f"{_SWITCH_A} {_SWITCH_B}", ""),
        ({"tissue": ("blood", "liver")}, _SWITCH_A, _SWITCH_B),
    ),
    # one tissue only
    "hypoxia": (
        (
            {"tissue": ("kidney",)},
            "VEGFA BNIP3 NDRG1 ADM SLC2A1 PDK1 EGLN3 ANKRD37",
            "ATP5F1E NDUFA1",
        ),
    ),
    "simulated lung rhythm": (
        (
            {"tissue": ("lung",)},
            "SIM-LUNG-01 SIM-LUNG-02 SIM-LUNG-03",
            "SIM-LUNG-04 SIM-LUNG-05 SIM-LUNG-06",
        ),
    ),
    # one disease only
    "interferon response": (
        (
            {"disease": (FLARE,)},
            "ISG15 IFI6 IFIT1 IFIT3 MX1 OAS1 IFI44L LY6E XAF1",
            "DDIT4",
        ),
    ),
    "fibrotic matrix": (
        (
            {
                "disease": (FIBROTIC,),
                "cell_type": (_SHORT["fib"], _SHORT["peri"], _SHORT["smc"]),
            },
            "COL1A1 COL1A2 COL3A1 POSTN CTHRC1 SPARC",
            "CFD ADH1B MFAP5",
        ),
    ),
}
