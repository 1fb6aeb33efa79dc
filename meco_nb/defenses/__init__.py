"The defenses, by name."
from meco_nb.defenses.detection import AdaptiveMisinformation
from meco_nb.defenses.ensembles import EDM, Misleader
from meco_nb.defenses.guardian import ModelGuardian
from meco_nb.defenses.ini import InI
from meco_nb.defenses.meco import MeCo, MeCoLiteral, MeCoReleased
from meco_nb.oracle import Undefended

DEFENSES = dict(undefended=Undefended, meco=MeCo, meco_literal=MeCoLiteral, meco_released=MeCoReleased,
                edm=EDM, misleader=Misleader, ini=InI, adaptive_misinformation=AdaptiveMisinformation, model_guardian=ModelGuardian)
