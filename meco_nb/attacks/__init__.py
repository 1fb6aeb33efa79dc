"The attacks, by name."
from meco_nb.attacks.dfme import DFME
from meco_nb.attacks.dfms_hl import DFMSHL
from meco_nb.attacks.jbda import JBDA
from meco_nb.attacks.knockoff import Knockoff
from meco_nb.attacks.maze import MAZE

ATTACKS = dict(dfme=DFME, maze=MAZE, dfms_hl=DFMSHL, knockoff=Knockoff, jbda=JBDA)
