"The defenses, by name."
from meco_nb.defenses.controls import GaussianInput, GaussianOutput, UInt8Input
from meco_nb.defenses.detection import AdaptiveMisinformation
from meco_nb.defenses.ensembles import EDM, Misleader
from meco_nb.defenses.guardian import ModelGuardian
from meco_nb.defenses.ini import InI
from meco_nb.defenses.meco import MeCo, MeCoLiteral, MeCoReleased
from meco_nb.defenses.outputs import ModelGuardS, ModelGuardW, RandP, ReverseSigmoid, Rounding, Top1
from meco_nb.defenses.poisoning import Grad, PPoison
from meco_nb.oracle import Undefended

DEFENSES = dict(
    undefended=Undefended,
    meco=MeCo, meco_literal=MeCoLiteral, meco_released=MeCoReleased,
    randp=RandP, p_poison=PPoison, grad=Grad, modelguard_w=ModelGuardW, modelguard_s=ModelGuardS,
    rounding=Rounding, reverse_sigmoid=ReverseSigmoid, top1=Top1,
    edm=EDM, misleader=Misleader, ini=InI, adaptive_misinformation=AdaptiveMisinformation, model_guardian=ModelGuardian,
    gaussian_output=GaussianOutput, gaussian_input=GaussianInput, uint8_input=UInt8Input,
)
