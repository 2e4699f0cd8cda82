"""The words in which radiologists name, deny and doubt findings, lines and tubes.

A phrase is a regular expression that begins with two letters. Phrases are separated by " | ". They
match text in lower case, with single blanks for blanks, hyphens and wrapped lines. If several
match at one place, the first on this page counts. A name with "?" is doubted (an opacity that
curators do not count as the finding), with "!" denied; "+" names both.
"""

from cxrstudy.data.lexicon import read_lexicon

_PARTS = r"""
seenwords: seen|identified|visuali[sz]ed|demonstrated|present|evident|appreciated|detected|noted|\
    apparent|observed|visible|confirmed|found|recogni[sz]ed|shown|suspected|discernible
seen: (?:{seenwords})
slight: (?:(?:significant|interval|appreciable|definite|acute|substantial|evidence of|apparent|\
    obvious|major|further|radiographic|detectable|other|marked|great|clear|particular|\
    significantly|appreciably|substantially|greatly|much|visible|relevant|considerable) )*
change: (?:chang|increas|decreas|improve|worsen|progress|differen|alter)\w*
nearly: (?:nearly|almost|partially|partly|mostly|largely|incompletely|near|partial|incomplete|nearly
    complete|near complete|almost complete|not completely|not entirely|not fully|not|not
    yet|virtually)
more: (?:(?:a|some|small|very|subtle|subtly|slight|slightly|mild|mildly|minimal|minimally|interval)
    )*
# of a clause
rest: (?:(?!,? (?:but|however)\b)[^.;\n]){0,200}\b
end: [.;\n]|$|,? (?:but|however|though|although)\b
# another modality, at the end of a clause: no verb follows about the present film
scan: (?:the |an? |his |her )?(?:\w+ ){0,2}?(?:ct|pet|mri|scan)s?(?:
    (?:ct|scan|chest|exam|study|studies)s?)*(?={end}|
    (?:from|of|dated|performed)\b(?!{rest}(?:is|are|ha[sv]e?|appears?|remains?)\b))
still: (?:unchanged|stable|again|persist|still|remain|now|larger|smaller|more|less|greater|increas|\
    decreas|better|worse|also|similar|same|improv)
out: (?:removed|withdrawn|pulled|discontinued|taken out|extracted|explanted|exchanged|replaced)
# not behind 'withdrawn' and 'pulled': it was moved, and is still there
moved: (?! (?:back|towards?|over|across|away|superiorly|inferiorly|laterally|medially|right|left|\
    slightly|somewhat|partially|partly|minimally|mildly|further|proximally|up|down|into|to|by (?:a
    few|about|approximately|roughly|an? |\d)|a
    (?:few|bit|little)|about|approximately|roughly|\d|from the)\b| ~|[^.;\n]{0,40}\b\d[\d.]*
    ?(?:cm|mm|centimet|millimet)|[,;.]? (?:(?:and|with|so|that|now|is|its|the|it) ?)*(?:tips?(?!
    of)|terminat\w+|ends|ending|lies|lying|projects?|projecting|reposition\w*|positioned|in
    (?:good|satisfactory|standard|appropriate|adequate)))
jugular: (?:internal jugular|external jugular|jugular|ijv?|subclavian|femoral)
cava: svc|superior (?:vena )?(?:cava|xxxx)|cav(?:o|al) ?atrial|caval junction
wires: (?:(?!or |and |with|no )\w+ ){0,4}(?:wires?|sutures?|leads?|catheters?|sternotomy xxxx)
lobe: rul|rml|rll|lul|lll
opacity: (?:disease|process|infiltrat|consolid|infecti|pneumon)\w*
"""
_CUES = r"""
# cue words that deny nothing
neutral: (?:should|could|can|may|might|must|would) (?:now |also |then )?be (?:\w+ )?{out}
    | to be (?:\w+ )?{out} | needs? {out} |
    (?:recommend|recommended|recommending|consider|consideration) (?:of
    )?(?:withdraw|pull|retract|reposition|remov)\w*
    | no longer (?:as|so|large|significant|loculated) | removal
    (?:(?:is|was|should|may|can|could|be) )*(?:recommended|advised|suggested|considered|planned)
    | (?:planned|future|for|before|prior to) removal
    | (?:nearly|almost|partially|partly|incompletely|slightly|not|not yet|not been) (?:been )?{out}
    | no {slight}{change} | without {slight}{change} | not {slight}{change} | not only | not as
    | not well | not clear | not (?:fully|optimally|entirely|completely|adequately|included|imaged|\
    evaluated|assessed|enough|convincingly)(?! (?:be )?(?:excluded|ruled))
    | {nearly} (?:completely |entirely |totally |complete
    )?(?:resol\w+|clear(?:ed|ing)|remov\w+|disappear\w+) | normal for | normal variant\w*
    | normal post\w* | lordotic | except(?:ed|ional)\w* | known | no doubt | may (?:19|20)\d\d
    | no comparison\w* | no prior\w* | no previous\w* | clear up |
    (?:is|are|was|were|be|been|better|best|readily|also|again|as|than|that|those) (?:\w+ )?{seen}
    (?:on|by) {scan}
# doubts what stands before
doubts_before: cannot (?:be )?(?:\w+ )?(?:be )?(?:excluded|ruled out)
    | can not be (?:\w+ )?(?:excluded|ruled out) | can't be (?:\w+ )?(?:excluded|ruled out)
    | not (?:be )?(?:\w+ )?(?:excluded|ruled out)
    | could (?:not )?be (?:\w+ )?(?:excluded|ruled out) | (?:is|are|remains?|also) possible
    | is questioned
    | (?:is|remains?) (?:a |another |also )?(?:a )?(?:consideration|possibility|concern)
    | (?:may|might|could|can) (?:also |still )?(?:be present|exist|be considered|coexist)
    | (?:may|might|could|can) (?:also )?(?:have|look|appear) (?:\w+ )?(?:\w+
    )?(?:appearance|like|similar)\w*
    | (?:should|must|would have to|has to|needs? to) be (?:\w+ )?(?:considered|excluded|ruled out)
    | (?:is|thought|felt|considered) (?:to be )?less likely | less likely(?=[.;\n])
    | (?:is|are|remains?) (?:also )?(?:in|on|within) the differential
    | (?:difficult|hard) to (?:\w+ )?(?:exclude|rule out)(?={end})
    | (?:{seenwords}|described|xxxx) (?:on|by) {scan} | on (?:old|prior|previous|outside) {scan}
    | (?:may|might|could) (?:be|lie) (?:outside|external to) (?:of )?(?:the )?patient
# with doubt only of a change: what changes is there
likely: probab(?:le|ly) | (?:most |very )?likely | presum\w+ |
    (?:possible|possibly|questionable|questionably)(?=
    {more}(?:increas|decreas|worsen|improv|progress)(?!\w*(?: \w+){0,2} (?:heart|cardi)))
# doubts what follows
doubts: (?:can ?not|can't|could not|unable to|difficult to|hard to) (?:\w+ )?(?:exclude|rule out)
    | exclude | rule out | ruling out | excluding | r/o | possib(?:le|ly|ility|ilities) | may
    | might | could | question(?:able|ably|ed|able)? | suspicious (?:for|of) | suspicion | perhaps
    | less likely | equivocal | potential(?:ly)? | concern(?:ing|ed)?(?: for)? | worrisome
    | differential | raises?\b(?: the)? | can (?:be|represent|reflect|indicate)
    | consider(?:ations?)? | etiolog(?:y|ies) | such as | cannot be | maybe | suggestion | if
    | unclear | dubious | doubtful | conceivab(?:le|ly) | query | uncertain whether | simulat\w+
    | mimic\w*
# mentioned, not found
aside: history | hx | h/o | evaluate(?: for)? | evaluation for | for evaluation of
    | assess(?:ment)? for | recommend\w* | to document | to confirm | follow ?up to | reason for
    | clinical (?:concern|question) | advised? | screening for | symptoms of | treated for
    | complain\w* | correlat\w* | workup | on (?:an?|the|his|her)
    (?:previous|prior|outside|old|earlier|remote) [^.;\n]{0,60}?\b(?:was|were|had)(?!{rest}{still})
# denies what stands before or, if there is nothing, what follows
denies_before: removal(?! of) | resolution(?! of) | no longer(?: \w*{seen})?
    | not (?:\w+ ){0,2}{seen} | nowhere | resolved | removed | cleared | absent | disappeared
    | unlikely | discontinued | withdrawn{moved} | pulled(?: out)?{moved} | explanted | extracted
    | d/c'?e?d | dc'd | gone(?! (?:up|down|from|to|through|on)\b)
    | (?:is|are|now|been|come|came|fell|fallen|taken) out(?=[.,;\n]|$| since| in the interval)
    | not in (?:place|situ)(?! of) | ruled out | excluded | not likely | has been out | is negative
    | none(?! (?:on|in|at)) | (?:replaced|exchanged) (?:by|with|for) | taken out
    | (?:is|are|be|lies?|projects?) (?:probably |likely )?(?:outside|external to) (?:of )?(?:the
    )?patient
# denies what follows
denies: no | without | w/o | free of | free from | clear of | negative for | absence of | denies
    | never | (?:interval|complete) withdrawal of(?![^.;\n]{0,80}\b(?:\d|tip|now|slight)) | neither
    | nor | not | lack of | lacks | rather than | resolution | removal | exclusion of | nil
    | clearing of | clearance of | instead of | devoid of | clear(?= (?:focal |acute )*(?:air
    ?space|consolid|infiltrat)\w*(?: (?:disease|consolid|infiltrat)\w*)?(?:[.,;\n]|$| or))
# ends every scope
contrast: but | however | though | although | except | otherwise | which | while | whereas | yet
    | aside from | apart from | other than | there (?:is|are|has|have|was|were|remains?) | besides
    | despite | in addition | status post
with: with | after | following | associated | because | since | again | now | remains?
# limits a denial
due: secondary to | due to | related to
# what follows is probable
suggests: (?:compatible|consistent)(?: with)? | represent\w* | suggest(?:s|ed|ing|ive)? | indicat\w+
    | favou?r\w* | felt to | thought to | in keeping | reflect\w*
or: or | versus | vs | and/or
and: and
"""
_TERMS = r"""
# none of our names, whatever its words
unrelated: (?:prior|previous|old|remote|recent|resolved) (?:\w+ )?pneumonia
    | pericardial (?:fluid|effusion|thickening)(?: or effusion)?s? | joint effusions?
    | knee effusions?
    | (?:vertebral|endplate|airway|tracheal|bronchial|compression) (?:body )?collapse | mass effect
    | (?:body|bone|muscle|ventricular|abdominal|breast|thyroid|adrenal|renal) mass
    | (?:thyroid|breast|adrenal) nodules?
    | (?:bone|bony|osseous|skeletal|liver|hepatic|brain|lytic) metasta\w+(?: disease)?
    | fractured {wires} | fractures? (?:of|in|involving|through) {wires}
    | (?:wire|suture|lead|catheter)s? (?:\w+ )?fracture[ds]? | soft tissue (?:edema|mass)
    | subcutaneous edema | peripheral edema | pedal edema | (?:ecg|ekg) (?:lead|wire|device)s?
    | monitor(?:ing)? (?:lead|wire|line|device)s? | telemetry (?:lead|wire)s? | superficial leads?
    | overlying leads? | catheterization
    | heart (?:failure|valve|rate|disease|attack|border|block|transplant)s?
    | cardiac (?:monitor\w*|valve|surgery|arrest|border|apex|catheterization) | side ports?
    | (?:scalp|ankle|leg|extremity|cerebral|laryngeal) edema
    | (?:left to right|right to left|intra ?cardiac|arterio ?venous) shunt\w*
    | (?:before|prior to|awaiting|for|planned|failed|impending|pending|attempted|anticipated)
    extubation
cardiomegaly: cardio ?meg\w+ | cardiac enlargement
pleural_effusion: (?:pleural|plueral) (?:based )?(?:\w+ )?(?:eff?us\w+|fluid)
    | eff?us(?:ion|on|in|io)s? | (?:hydro|hemo|haemo|pyo)thorax | pleuroeffusion
pleural_effusion+pneumothorax: (?:hydro|hemo|haemo) ?pneumothora\w+
pneumothorax: pneumo ?thora\w* | (?:pneumo|penumo|pnuemo|pnemo|pneomo|pneumu)th\w+ | pneumthorax
    | ptx | pleural (?:air|gas)(?: collection)?s?
consolidation: consolid\w+(?: {opacity})? | consolodat\w+ | infiltrat\w+(?: {opacity})? | infiltrate
    | air ?spaces? {opacity}(?: {opacity})? | alveolar {opacity} | pneumonic {opacity}
# pneumonia is a diagnosis: curators code the opacity seen with it, or an opacity alone
consolidation?: (?:air ?spaces?|alveolar) (?:opaci|densit|shadow|filling|change|abnormal)\w*
    | pneumonias? | pnuemonia | penumonia | pnemonia | bronchopneumonia
atelectasis: at(?:el[ae]|ale|lec)\w* | collaps(?:ed?|ing) (?:of
    )?(?:(?!(?:vertebr|disc|at|to|with|on|in)\w*)\w+ ){0,5}?(?:lobe|lung|lingula|segment|{lobe})s?
    | (?:lobar|lobe|lobes|lung|lungs|lingular|lingula|segmental|{lobe})
    (?:(?:is|are|has|have|appears?|remains?|now|partial|partially|completely|totally|nearly)
    )*collaps\w*
# of what?
atelectasis?: collapse
edema: edema | oedema | edematous
nodule_mass: nodules? | round(?:ed)? nodular(?: \w+){0,2}? (?:opaci|densit|lesion)\w*
    | nodular(?: \w+)? lesions? | mass(?:es)?(?! ?like) | micronodules? | coin lesions?
    | (?:pulmonary|lung) metasta\w+ | fibro ?nodular\w*
    | mass ?like(?! (?:\w+ )?(?:{opacity}|air ?space|atelect|appear))
nodule_mass?: mass ?like | nodular(?: \w+){0,3}? (?:opaci|densit|focus|foci|shadow)\w*
    | nodularit(?:y|ies) | metastas[ei]s | metastatic disease
fracture: fractures?
    | fractured (?:\w+ ){0,3}(?:rib|clavicle|humerus|vertebra|sternum|scapula|bone)\w*
    | ribs? (?:is|are) fractured | fx
tracheostomy_tube: tracheostomy(?: tube| cannula)? | trach(?: tube)? | tracheotomy(?: tube)?
tracheostomy_tube!: decannulat(?:ed|ion)
gastrostomy_tube: gastrostomy(?: tube| catheter)? | gastrojejunostomy(?: tube)? | (?:g|gj|j) tube
    | peg(?: tube)? | jejunostomy(?: tube)?
endotracheal_tube: endo ?tracheal(?: tube)? | ett | et tube | tracheal tube | intubat(?:ed|ion)
    | nasotracheal tube
endotracheal_tube!: extubat(?:ed|ion)
nasogastric_tube: (?:naso|oro) ?gastric(?: tube| catheter)? | ng(?: tube| catheter)?(?! ?/) | ngt
    | ogt | og(?: tube)? | nasoenteric(?: tube)? | enteric (?:\w+ )?(?:tube|catheter)s?
    | feeding (?:tube|catheter) | corpak(?: tube)? | dobb? ?hoff(?: tube| catheter)? | gastric tube
    | naso(?:jejunal|duodenal)(?: tube)?
swan_ganz_catheter: swan(?: ganz)?(?: catheter)? | pulmonary arter(?:y|ial) (?:catheter|line)
    | pa (?:catheter|line) | right heart catheter
picc: picc?(?: line| catheter)s? | picc
    | peripherally inserted (?:central )?(?:venous )?(?:catheter|line)
    | upper extremity (?:central )?(?:venous )?(?:catheter|line)
chest_tube: chest (?:tube|drain|drainage tube|drainage catheter)s?
    | (?:tube )?thoracostomy(?: tube| catheter)?s?
    | pleural (?:drain|tube|catheter|drainage catheter|pigtail catheter)s?
    | pig ?tail(?: pleural)?(?: catheter| drain| tube)?s? | intercostal (?:drain|tube|catheter)s?
    | pleurx(?: catheter)?s? | thoracic drains?
other_catheter: (?:hemo)?dialysis (?:\w+ )?(?:catheter|line)s? | perm ?cath\w* | hd catheter
    | vas ?cath\w* | quinton(?: \w+)? catheter | dual lumen (?:\w+ )?catheter
    | {jugular} (?:\w+ ){0,2}(?:hemo)?dialysis catheter | ventriculo ?peritoneal(?: shunt)?
    | vp shunt | shunt(?: tubing| catheter)?s? | jp drain | (?:mediastinal )?drains?
    | drainage catheters? | port a cath\w* | porta ?cath\w* | medi ?ports? | power ?ports?
    | (?:chest |infusion |subcutaneous )?ports? | intra aortic balloon(?: pump)? | iabp
    | vascular access (?:device|catheter|port)s? | umbilical (?:\w+ )?(?:catheter|line)s?
central_venous_catheter: central (?:\w+ )?(?:venous )?(?:catheter|line|access)s? | cvc | cvl
    | central venous(?!
    (?:congest|engorge|hyperten|pressure|promin|disten|sten|occlu|struct|vascul|pulmon))
    | (?:hickman|broviac|groshong)(?: \w+)? | cordis
    | (?:cvp|central venous pressure) (?:catheter|line)s? | {jugular} (?:approach |vein |venous
    |central |tunneled |triple lumen )*(?:catheter|line|cvc|cvl|sheath|introducer|cordis|access)s?
    | venous (?:catheter|line)s? | svc (?:catheter|line) | triple lumen catheter
catheter: catheters? | xxxx a xxxx
tip: tip (?:\w+ ){0,6}(?:{cava}|right atrium) | (?:terminat\w+|ends|ending) (?:\w+ ){0,4}(?:{cava})
    | xxxx (?:in|at|within) (?:the )?(?:\w+ )?(?:{cava})
pacemaker: pace ?makers? | pacers? | aicds? | icds?(?! \d) | defibrillators?
    | pacing (?:\w+ )?(?:lead|wire|device|electrode)s? | cardiac (?:\w+
    )?(?:conduction|rhythm|pacing|pacer|implantable|generator|device)(?: \w+)?(?: device)?
    | cardiac xxxx(?: and| with)? leads? | cardiac (?:\w+ )?leads? | crt d
    | (?:atrial|ventricular|rv|ra|lv|shock|chamber) (?:\w+ )?leads?
    | biventricular (?:\w+ )?(?:device|pacer|lead)s? | (?:dual|single) (?:chamber|lead) (?:\w+ )?\w+
    | transvenous leads? | leads? tips? | cardiac stimulation leads? | pulse generator
    | leads? terminat\w+ in the (?:right|left)
"""
_SIZES = r"""
# the heart, what is said of its size, and whose size it may be instead
heart: heart(?: size| shadow| silhouette)? | cardiac(?: mediastinal| and mediastinal)?(?:
    silhouette| shadow| contour| size| outline| diameter| transverse diameter)?s?
    | cardio ?mediastinal(?: silhouette| shadow| contour| size| structure| outline)?s?
    | cardio ?thoracic(?: ratio)? | cardiopericardial silhouette
upper: (?:at )?(?:the )?(?:upper|top|high)(?: limits?)?(?: of)?(?: the)? normal(?: limits?)?(?: in
    size)? | upper limits? | high normal | top normal
large: enlarg\w+ | large | borderline | prominent | prominence | increased? | widen\w* | globular
    | big | generous
normal: normal(?! to ) | unremarkable | within (?:\w+ )?(?:limits?)? ?(?:of )?normal
same: stable | unchanged | similar | obscured
elsewhere: aort\w+ | hil(?:ar|um|a) | pulmonary (?:arter|vascul|vessel|hil)\w* | mediastin\w+
    | vascul\w+ | lungs?
"""
_ABNORMAL = r"""
# what else keeps a film from being normal
abnormal: granulom\w+ | calcif\w+ | calcinosis | scolio\w+ | degenerat\w+ | spondyl\w+ | emphysem\w+
    | copd | hyper ?(?:inflat|expan|disten|lucen|aerat)\w+
    | hypo ?(?:inflat|aerat|ventilat|expan)\w+ | low (?:lung )?volumes?
    | lung volumes are (?:\w+ )?low | scar\w* | fibro\w+ | thicken\w+ | blunt\w+ | opaci\w+
    | densit\w+ | tortuo\w+ | ectasia | ectatic | atheroscl\w+ | hernia\w* | elevat\w+ | eventration
    | osteophyt\w* | osteopeni\w+ | kypho\w+ | deformit\w+ | congesti\w+ | prominen\w+ | increased
    | interstitial | cuffing | lucenc\w+ | clips? | sternotomy | wires? | cabg | hardware | fusion
    | prosthe\w+ | stents? | valves? | anchors? | arthr\w+ | foreign | implants? | bullets?
    | adenopathy | lymphadenopathy | enlarged | widen\w* | cyst\w* | bulla\w* | blebs? | cavit\w+
    | pneumo(?:peritoneum|mediastinum) | curvature | dextro\w+ | levo\w+ | wedg\w+ | compression
    | sclero\w+ | bronchiectasis | surgical | postsurgical | post(?: )?operative | rods? | streaky
    | markings | flatten\w* | crowding | shallow | azygos | devices? | mastectomy | unfolded
    | resect\w+ | narrowing | spurring | bronchitis | hyperten\w+ | reticular\w* | spinal dysraph\w*
    | coarse\w* | uncoiled | chronic | plate(?:s|like) | screws? | displac\w+ | ectop\w+
    | sarcoid\w* | gastric distention | dilat\w+
"""
CUES, TERMS, SIZES, ABNORMAL = (
    read_lexicon(_PARTS, block) for block in (_CUES, _TERMS, _SIZES, _ABNORMAL)
)
