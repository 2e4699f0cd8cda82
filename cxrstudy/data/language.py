"""Tell the language of a report: English is read, other languages are counted.

A text is English unless words of another language outnumber its English ones. The lists are short:
function words, and words of normal and common reports, so that two words ("Kein Pneumothorax.") are
enough. Words that two languages share ("edema", "pleural", "normal") count for neither.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable

from cxrstudy.data.lexicon import read_lexicon, word_set
from cxrstudy.data.plaintext import plain

_ENGLISH = word_set(  # none of them a word of the languages below
    "the of and with without there are were be been has have had this that these those which on "
    "at for from to by or not but it its than then also again within into over under above below "
    "between through seen identified noted demonstrated present evidence consistent compatible "
    "suggest suggests representing may could likely probable possible questionable unchanged "
    "interval increased decreased improved worsened worsening improving resolved resolution new "
    "old prior previous previously since clear limits unremarkable negative lung lungs heart "
    "chest line lines tip catheter pacemaker lead leads wires clips effusion effusions opacity "
    "opacities cardiomegaly mass masses rib ribs spine bony osseous bone bones soft tissues "
    "scarring granuloma granulomas calcified disease abnormality abnormalities acute chronic "
    "right left upper lower middle apex apices side sided small mild moderate severe enlarged "
    "enlargement size contours vascular vasculature airspace space focal free air fluid view "
    "views ray radiograph radiographs cough fever year female woman man patient showing shows "
    "showed removed removal placed placement remains terminates projects overlying elevated low "
    "degenerative changes change intact tortuous well expanded absent yes nad my we carina "
    "stomach diaphragm bibasilar perihilar basilar apical streaky patchy blunting hyperinflated "
    "hyperinflation emphysema spondylosis sternotomy postoperative tracheostomy extubated "
    "intubated costophrenic angle angles vessels hilar interstitial markings subsegmental linear "
    "cannot exclude pulmonary opacification"
)
_FAMILIAR = _ENGLISH | word_set(  # also words of other languages: a text with one is not unknown
    "no in is an was as normal bases tube tubes lobe lobes image images film films pain fractures "
    "nodules collapse large stable finding findings impression indication history exam study "
    "clinical comparison compared technique male none process ett picc cvc ngt swan ganz volumes "
    "infiltrate infiltrates silhouette midline consolidation pneumonia atelectasis"
)
# by language: none of them English, nor an abbreviation that English reports use
_WORDS = read_lexicon("""
German: kein keine keinen keiner keinem nicht und der das dem den des ein eine einer eines einem
    einen mit ohne ist sind bei zum zur nach vor von vom auf aus sich auch wie rechts links
    beidseits beidseitig rechte linke rechten linken rechter linker rechtsseitig linksseitig
    nachweis pleuraerguss pleuraergüsse pleuraergusses erguss ergüsse herz herzgröße herzgrösse
    herzschatten lunge lungen lungenödem lungenoedem stauung infiltrat infiltraten atelektase
    atelektasen pneumonie kardiomegalie rundherd fraktur verschattung unauffällig unauffaellig
    regelrecht befund beurteilung indikation fragestellung ödem oedem magensonde zvk aktuell
    vergleich voraufnahme hinweis keinerlei nein stauungszeichen ausschluss geringer geringe
    deutliche vorhanden konsolidierung
French: pas aucun aucune sans avec le les des du une est sont ou dans sur par au aux il elle cette
    poumon poumons coeur cœur épanchement épanchements epanchement epanchements pneumopathie
    cardiomégalie cardiomegalie droit droite gauche bilatéral bilatérale foyer foyers oedème œdème
    opacité opacités opacite condensation taille normale cliché cliche thoracique pleurale
    pulmonaire pulmonaires atélectasie atelectasie sonde retrouvé anomalie anomalies renseignements
    pleuraux parenchyme parenchymateux
Spanish: sin con los las el del una por para es hay se observa observan aprecia aprecian existe
    existen derrame derrames neumotorax neumotórax corazon corazón pulmon pulmones pulmón
    cardiomegalia pulmonar pulmonares derecho derecha izquierdo izquierda signos silueta cardiaca
    cardíaca tamaño placa tórax torax tubo consolidacion consolidación consolidaciones atelectasia
    atelectasias infiltrado infiltrados neumonia neumonía nodulo nódulo nodulos nódulos fractura
    fracturas normales senos costofrenicos costofrénicos hallazgos estudio informe cambios cronicos
    crónicos patron patrón laminar laminares marcapasos moderada moderado derram cardiomegali derech
    izquierd hallazg patolog pinzamient cronic cambi aument intersticial marcapas endotraqueal
    yugular torac neumon atelectasi fractur escoliosis costofren aumento leve bilaterales
    alteraciones
Italian: senza con il lo gli dei degli della delle nel nella alla una è sono né ed di si versamento
    versamenti pneumotorace cuore polmone polmoni polmonare polmonari cardiomegalia pleurico
    pleurica pleurici destro destra sinistro sinistra sinistri addensamento addensamenti addensativi
    ombra cardiaca nei limiti reperti lesioni consolidazione consolidazioni infiltrato infiltrati
    noduli atelettasia atelettasie frattura fratture assenza evidenza torace regolare immodificato
Portuguese: sem com das dos nas nos uma é são não nao há sinais derrame derrames pneumotórax
    pneumotorax coração coracao pulmão pulmões pulmao pulmoes pulmonar cardiomegalia direito direita
    esquerdo esquerda área cardíaca consolidação consolidações consolidacao consolidacoes
    atelectasia nódulos tórax opacidade opacidades ausência ausencia normais aspecto fratura
    fraturas dentro limites evidências seios costofrênicos livres
Dutch: geen niet het een met zonder van de en zijn wordt bij naar links rechts hart longen
    pleuravocht vocht hartgrootte cardiomegalie consolidatie consolidaties infiltraat infiltraten
    atelectase atelectasen linker rechter normale afwijkingen aanwijzingen voor oedeem longoedeem
    fractuur verdichting tekenen
Scandinavian: ingen inga inget intet ikke ikkje inte och utan uden uten för til är på hjärta hjärtat
    hjerte hjertet lungor lungorna lunger lungene pleuravätska pleuravæske pleuraexsudat höger
    vänster højre venstre høyre normalt förändringar forandringer tegn tecken
Polish: bez nie jest są oraz płuca pluca płuc serce serca odma odmy odmę płyn płynu opłucnej
    oplucnej zmian zmiany cech niedodmy prawej lewej prawidłowe jamach widoczne
Czech or Slovak: není nejsou jsou plíce srdce výpotek výpotku pneumotorax pneumotoraxu vpravo vlevo
Turkish: yok yoktur izlenmedi saptanmadi akciğer akciğerler akciger kalp normaldir pnömotoraks
    pnomotoraks plevral efüzyon efuzyon sağ sağda solda izlenmektedir
Romanian: fără fara nu este și pulmon plaman plămân pleurală pleurala drept stâng
Hungarian: nincs nem és szív tüdő tüdők pleuralis folyadék látható
Finnish: ei ole sydän keuhkot keuhkoissa ilmarintaa pleuranestettä normaalit
Croatian or Serbian: nema nisu srce pluća pneumotoraksa izljeva pleuralni pleuralnog desno lijevo
Indonesian or Malay: tidak tiada tampak dan jantung paru efusi kanan kiri dalam batas
Vietnamese: không khong có tràn khí dịch màng phổi bóng
Catalan: sense amb vessament pneumotòrax dreta esquerra els
""")
_LANGUAGES: dict[str, list[str]] = {}  # word -> languages
for _name, _list in _WORDS.items():
    for _word in _list.split():
        _LANGUAGES.setdefault(_word, []).append(_name)
_FOREIGN = frozenset(_LANGUAGES)
_SCRIPT = {  # letters of other scripts
    name: re.compile(f"[{letters}]")
    for name, letters in read_lexicon(r"""
Greek: \u0370-\u03ff
Russian or another Cyrillic language: \u0400-\u052f
Hebrew: \u0590-\u05ff
Arabic or Persian: \u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff
Hindi: \u0900-\u097f
Japanese: \u3040-\u30ff
Korean: \uac00-\ud7af\u1100-\u11ff
Chinese: \u4e00-\u9fff\u3400-\u4dbf
Thai: \u0e00-\u0e7f
another script: \u0530-\u058f\u0980-\u0dff\u0e80-\u10ff\u1200-\u18af
""").items()
}
_OTHER = re.compile(f"(?:{'|'.join(letter.pattern for letter in _SCRIPT.values())}){{2,}}")
_ACCENTED = re.compile("[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1ea0-\u1ef9]")
# words whose accents do not count
_NEUTRAL = _FOREIGN | word_set("sjögren ménière behçet köhler löffler naïve röntgen")
_WORD = re.compile(r"[^\W\d_]+")
_ASCII_WORD = re.compile(r"[a-z]{2,}")
_SENTENCE = re.compile(r"[^.;!?\n]+")


def language(text: str) -> str:
    """Return the language of a report: "English", another name, or "unknown" for unlisted words."""
    return _language(plain(text)[0])


def foreign_parts(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of the parts of a plain text that are not English: all, or sentences."""
    is_ascii = text.isascii()
    words = (_ASCII_WORD if is_ascii else _WORD).findall(text.lower())
    is_known = len(words) < 6 or not _FAMILIAR.isdisjoint(words)
    if is_ascii and is_known and _FOREIGN.isdisjoint(words):
        return []
    if _language(text) != "English":
        return [(0, len(text))]
    return [
        m.span() for m in _SENTENCE.finditer(text) if _language(m[0]) not in ("English", "unknown")
    ]


def not_english(reports: Iterable[object]) -> dict[str, int]:
    """Count the reports of each other language, most first. Missing reports are skipped."""
    texts = (text for text in reports if isinstance(text, str) and text.strip())
    return dict(Counter(name for name in map(language, texts) if name != "English").most_common())


def keep_english(reports: Iterable[str]) -> list[str]:
    """Return the reports, empty those in other languages; one warning says how many they are."""
    texts = list(reports)
    names = [language(text) if text.strip() else "English" for text in texts]
    found = Counter(name for name in names if name != "English")
    if found:
        most = ", ".join(f"{name} {n:,}" for name, n in found.most_common(4))
        warnings.warn(
            f"{found.total():,} of {sum(bool(text.strip()) for text in texts):,} reports are not "
            f"in English ({most}): only English is read, so they give no labels. Leave them out, "
            "or translate them first.",
            stacklevel=2,
        )
    return [text if name == "English" else "" for text, name in zip(texts, names, strict=True)]


def _language(text: str) -> str:
    words = _WORD.findall(text.lower())
    foreign = [word for word in words if word in _LANGUAGES]
    accented, other = 0, []
    if not text.isascii():
        accents = (w for w in words if len(w) > 2 and w not in _NEUTRAL and _ACCENTED.search(w))
        accented, other = sum(1 for _ in accents), _OTHER.findall(text)
    english = sum(1 for word in words if word in _ENGLISH)
    if len(foreign) + accented + sum(map(len, other)) / 2 > english:
        if other:
            return next(name for name, letter in _SCRIPT.items() if letter.search("".join(other)))
        votes = Counter(name for word in foreign for name in _LANGUAGES[word])
        return votes.most_common(1)[0][0] if votes else "unknown"
    long_words = {word for word in words if len(word) > 3 and "xx" not in word}
    return "unknown" if len(long_words) > 5 and _FAMILIAR.isdisjoint(words) else "English"
