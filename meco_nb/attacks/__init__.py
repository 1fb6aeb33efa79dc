"The attacks, by name."
from meco_nb.attacks.dfme import DFME

ATTACKS = dict(dfme=DFME)
