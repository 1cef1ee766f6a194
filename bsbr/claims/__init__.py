"""What the documents under test state, and what was measured: claims and rules are data, the judge is code.

Nothing here knows how a claim is shown; that is `bsbr.show.claims`.
"""

from bsbr.claims.judge import distinct, judge
from bsbr.claims.loading import ClaimsError, conditions, counts, load, short, title
from bsbr.claims.readings import Reading
from bsbr.claims.rules import Part, Rule, Rules, RulesError, Source, Word, rules
from bsbr.claims.verdicts import DECIDED, VERDICTS, Tolerance, verdict

__all__ = [
    "DECIDED",
    "VERDICTS",
    "ClaimsError",
    "Part",
    "Reading",
    "Rule",
    "Rules",
    "RulesError",
    "Source",
    "Tolerance",
    "Word",
    "conditions",
    "counts",
    "distinct",
    "judge",
    "load",
    "rules",
    "short",
    "title",
    "verdict",
]
