r"""The rules by which the Stanford PTBTokenizer 3.4.1 cuts text, as the official caption evaluation calls it.

Written for `longest_match`: of all the rules the one with the longest match applies (what must follow is counted),
and of several the first. A literal letter matches both cases; a class such as `[M]` does not, which makes a few
abbreviations case-sensitive on purpose. Characters are UTF-16 code units, as in Java.

Source: the behaviour of the tokenizer in the package pycocoevalcap 1.2. The rules have been compared with it as
automata: they accept the same strings by corresponding rules (see tests/evaluation/captions/test_ptb_tokenizer.py for
the strings that remain as tests).
"""

from __future__ import annotations

import re
import unicodedata

from visattn.evaluation.captions.longest_match import Rule

# Letters that Unicode got after the version that the tokenizer was built with (6.1), up to Unicode 17.
_LATER_LETTERS = (
    "\u037f\u0528-\u052f\u0560\u0588\u05ef\u0860-\u089f\u08a1\u08ad-\u08c9\u0978\u0980\u09fc\u0af9\u0c34\u0c5a-\u0c5d\u0c80"
    "\u0cdc-\u0cdd\u0d04\u0d54-\u0d56\u0d5f\u0e86\u0e89\u0e8c\u0e8e-\u0e93\u0e98\u0ea0\u0ea8-\u0ea9\u0eac\u13f5"
    "\u13f8-\u13fd\u16f1-\u16f8\u170d\u171f\u1878\u191d-\u191e\u19b0-\u19c0\u19c8-\u19c9\u1b4c\u1c80-\u1cbf"
    "\u1cf2-\u1cf3\u1cfa\u2c2f\u2c5f\u312e-\u312f\u31bb-\u31bf\u4db6-\u4dbf\u9fcd-\u9fff\ua698-\ua69d\ua78f"
    "\ua794-\ua79f\ua7ab-\ua7f7\ua8fd-\ua8fe\ua9e0-\ua9e4\ua9e6-\ua9ef\ua9fa-\ua9fe\uaa7e-\uaa7f\uab30-\uabbf"
)
_is_later = re.compile(f"[{_LATER_LETTERS}]").match


def is_letter(character: str) -> bool:
    """Whether the tokenizer's Unicode (6.1) calls it a letter; it also counts two vowel signs of Mongolian."""
    if character < "\x80":
        return character.isalpha()
    return (unicodedata.category(character)[0] == "L" and not _is_later(character)) or character in "\u1885\u1886"


def is_digit(character: str) -> bool:
    later = "\u0de6" <= character <= "\u0def" or "\ua9f0" <= character <= "\ua9f9"
    return unicodedata.category(character) == "Nd" and not later


def is_uppercase(character: str) -> bool:
    return character.isupper() and not _is_later(character) and not "\u13a0" <= character <= "\u13f4"


CLASSES = {"l": is_letter, "d": is_digit, "U": is_uppercase}

# Marks and signs that words may hold besides letters: soft hyphen, accents and vowel signs of many scripts.
_WORD_MARKS = (
    r"\u00ad\u0237-\u024f\u02c2-\u02c5\u02d2-\u02df\u02e5-\u036f\u0370-\u037d\u0384\u0385\u03cf\u03f6\u03fc-\u03ff"
    r"\u0483-\u0487\u04cf\u04f6-\u04ff\u0510-\u0525\u055a-\u055f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    r"\u0615-\u061a\u063b-\u063f\u064b-\u065e\u0670\u06d6-\u06ef\u06fa-\u06ff\u070f\u0711\u0730-\u074f\u0750-\u077f"
    r"\u07a6-\u07b1\u07ca-\u07f5\u07fa\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955\u0962\u0963\u0981-\u0983"
    r"\u09bc-\u09c4\u09c7\u09c8\u09cb-\u09cd\u09d7\u09e2\u09e3\u0a01-\u0a03\u0a3c\u0a3e-\u0a4f\u0a81-\u0a83"
    r"\u0abc-\u0acf\u0b82\u0bbe-\u0bc2\u0bc6-\u0bc8\u0bca-\u0bcd\u0c01-\u0c03\u0c3e-\u0c56\u0d3e-\u0d44\u0d46-\u0d48"
    r"\u0e30-\u0e3a\u0e47-\u0e4e\u0eb1-\u0ebc\u0ec8-\u0ecd"
)

# Symbols that are tokens of their own.
_SYMBOLS = (
    r"+%&~^|\\\u00a6\u00a7\u00a8\u00a9\u00ac\u00ae\u00af\u00b0-\u00ba\u00d7\u00f7\u0387\u05be\u05c0\u05c3\u05c6"
    r"\u05f3\u05f4\u0600-\u0603\u0606-\u060a\u060c\u0614\u061b\u061e\u066a\u066d\u0703-\u070d\u07f6-\u07f8\u0964"
    r"\u0965\u0e4f\u1fbd\u2016\u2017\u2020-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u207a-\u207f\u208a-\u208e"
    r"\u2100-\u214f\u2190-\u2bff\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)

DEFINITIONS = {
    # White space
    "SPACE": r"[ \t\u00a0\u2000-\u200a\u3000]",
    "NEWLINE": r"(\r|\r?\n|[\u2028\u2029\x0b\x0c\x85])",
    "BLANK": "({SPACE}|{NEWLINE})",
    # A tag, a comment or a declaration on one line
    "ATTRIBUTE": r"[A-Za-z][A-Za-z0-9_:.\-]*( *= *('[^']*'|\"[^\"]*\"))?",
    "TAG": r"<([!?][A-Za-z\-][^>\r\n]*|[A-Za-z][A-Za-z0-9_:.\-]*( +{ATTRIBUTE})* */?|/[A-Za-z][A-Za-z0-9_:.\-]*) *>",
    # Words
    "ACCENTED": "&[aeiouAEIOU](acute|grave|uml);",
    "LETTER": rf"(\l|{{ACCENTED}}|[{_WORD_MARKS}])",
    "DIGIT": r"[\d\u07c0-\u07c9]",
    "WORD": "{LETTER}({LETTER}|{DIGIT})*([.!?]{LETTER}({LETTER}|{DIGIT})*)*",
    "APOSTROPHE": r"(['\x92\u2019]|&apos;)",
    "ANY_APOSTROPHE": r"({APOSTROPHE}|[`\x91\u2018\u201b])",
    "CLITIC": "{APOSTROPHE}([msdMSD]|re|ve|ll)",
    "NOT": "n{ANY_APOSTROPHE}t",
    "BEFORE_NOT": r"[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*",
    "APOSTROPHE_WORD": (
        r"({APOSTROPHE}n{APOSTROPHE}?|[lLdDjJ]{APOSTROPHE}|(Dunkin|somethin|ol){APOSTROPHE}|{APOSTROPHE}(em|cause|till?)"
        r"|{APOSTROPHE}[2-9]0s|[A-HJ-XZn]{ANY_APOSTROPHE}\l\l\l*|\l\l*[aeiouyAEIOUY]{ANY_APOSTROPHE}[aeiouA-Z]\l*"
        r"|cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|O{ANY_APOSTROPHE}o)"
    ),
    # Numbers
    "NUMBER": r"({DIGIT}*([.:,\u00ad\u066b\u066c]{DIGIT}+)+|{DIGIT}+)",
    "SIGNED": "[-+]?{NUMBER}",
    "FRACTION": r"({DIGIT}{1,4}[- \u00a0])?{DIGIT}{1,4}(\\?/|\u2044){DIGIT}{1,4}",
    # Words with hyphens, slashes and ampersands
    "HYPHEN": r"[-_\u058a\u2010\u2011]",
    "PART": r"([dDoOlL]{ANY_APOSTROPHE}[\l\d])?",
    "HYPHENATED": r"{PART}[\l\d]+({HYPHEN}{PART}[\l\d]+)*",
    "COMPOUND": r"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(-([A-Za-z0-9\u00ad]+|{ACRONYM_LONG}\.))+",
    "SLASHED": r"[A-Za-z0-9]+(-[A-Za-z]+){0,2}(\\?/[A-Za-z0-9]+(-[A-Za-z]+){0,2}){1,2}",
    "ANDED": "[A-Z]+(([+&]|&amp;)[A-Z]+)+",
    # Addresses
    "URL": r'(https?)://[^ \t\n\f\r"<>|(){}]+[^ \t\n\f\r"<>|.!?(){},\-]',
    "LIKELY_URL": (
        r'((www\.([^ \t\n\f\r"<>|.!?(){},]+\.)+[a-zA-Z]{2,4})'
        r"|(([^ \t\n\f\r\"`'<>|.!?(){},-_$]+\.)+(com|net|org|edu)))"
        r'(/[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},\-])?'
    ),
    "EMAIL": r'(&lt;|<)?[a-zA-Z0-9][^ \t\n\f\r"<>|(){}\u00a0]*@'
    r'([^ \t\n\f\r"<>|(){}.\u00a0]+\.)*[^ \t\n\f\r"<>|(){}.\u00a0]+(&gt;|>)?',
    "TWITTER": r"(@[a-zA-Z_][a-zA-Z_0-9]*|#{LETTER}+)",
    "FILE_ENDING": (
        "(bat|bmp|c|class|cgi|cpp|dll|doc|docx|exe|gif|gz|h|htm|html|jar|java|jpeg|jpg|mov|mp3|pdf|php|pl|png|ppt|ps|py"
        "|sql|tar|txt|wav|x|xml|zip)"
    ),
    "FILE_NAME": r"({LETTER}|{DIGIT})+(\.({LETTER}|{DIGIT})+)*\.{FILE_ENDING}",
    "PHONE": (
        r"((\([0-9]{2,3}\)[ \u00a0]?|(\+\+?)?([0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
        r"[0-9]{3,4}[- \u00a0]?[0-9]{3,5}"
        r"|((\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5})"
    ),
    # Abbreviations
    "ACRONYM": r"([A-Za-z](\.[A-Za-z])*|(Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(U\.K|U\.S\.S\.R))",
    "ACRONYM_LONG": r"([A-Za-z](\.[A-Za-z])+|(Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(U\.K|U\.S\.S\.R))",
    "MONTH_OR_DAY": "Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thu|Thurs|Fri",
    "STATE": (
        "Ala|Ariz|[A]z|[A]rk|Calif|Colo|Conn|Ct|Dak|[D]el|Fla|Ga|[I]ll|Ind|Kans?|Ky|[L]a|[M]ass|Md|Mich|Minn|[M]iss|Mo|Mont"
        "|Neb|Nev|Okla|[O]re|[P]a|Penn|Tenn|[T]ex|Va|Vt|[W]ash|Wisc?|Wyo"
    ),
    "COMPANY": "Inc|Cos?|Corp|Pp?t[ye]s?|Ltd|Plc|Rt|Bancorp|Bhd|Assn|Univ|Intl|Sys",
    "USUALLY_LAST": (
        r"({MONTH_OR_DAY}|{STATE}|{COMPANY}|tel|est|ext|sq|Rd|Blvd|Bldg|Jr|Sr|Bros|(Ed|Ph)\.D|Esq|etc|al|seq)\."
    ),
    "TITLE": (
        "Mr|Mrs|Ms|[M]iss|Drs?|Profs?|Sens?|Reps?|Attys?|Lt|Col|Gen|Messrs|Govs?|Adm|Rev|Maj|Sgt|Cpl|Pvt|Capt|Ste?|Ave|Pres"
        "|Lieut|Hon|Brig|Co?mdr|Pfc|Spc|Supts?|Det|Mt|Ft|Adj|Adv|Asst|Assoc|Ens|Insp|Mlle|Mme|Msgr|Sfc"
    ),
    "NEVER_LAST": (r"({TITLE}|vs|Alex|Wm|Jos|Cie|a\.k\.a|cf|TREAS|Ph|{ACRONYM}|Invt|Elec|Natl|M[ft]g|Dept)"),
    "BEFORE_NUMBER": r"(ca|figs?|prop|nos?|art|bldg|pp|op)\.",
    # After an acronym and a space these words begin a sentence
    "SENTENCE_START": (
        r"([A]bout|[A]ccording|[A]dditionally|[A]fter|[A]n|[A]|[A]s|[A]t|[B]ut|[E]arlier|[H]e|[H]er|[H]ere|[H]owever|[I]f|[I]n"
        r"|[I]t|[L]ast|[M]any|[M]ore|[M]r\.|[M]s\.|[N]ow|[O]nce|[O]ne|[O]ther|[O]ur|[S]he|[S]ince|[S]o|[S]ome|[S]uch|[T]hat|[T]heir"
        r"|[T]he|[T]hen|[T]here|[T]hese|[T]hey|[T]his|[W]e|[W]hen|[W]hile|[W]hat|[Y]et|[Y]ou|{TAG})"
    ),
    # Punctuation
    "QUOTES": r"({APOSTROPHE}|''|[`\u2018-\u201f\x91-\x94\u2039\u203a\u00ab\u00bb]{1,2})",
    "DOUBLE_QUOTE": '("|&quot;)',
    "INSIDE": r"[,;:\u3001]",
    "DOTS": r"(\.{3,5}|(\.[ \u00a0]){2,4}\.|[\x85\u2026])",
    "SMILEY": r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]",
    "ASIAN_SMILEY": (
        r"([\^x=~<>]\.\[\^x=[^<]*<>\]|[-\^x=~<>']_[-\^x=~<>']|\([-\^x=~<>'][_.]?[-\^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\))"
    ),
}

RULES = (
    Rule("[cfCF]#|c[+][+]", "token"),
    Rule("cannot|'twas", "split 3"),
    Rule("'tis|gonna|gotta|lemme|gimme|wanna", "split 2"),
    Rule("{TAG}", "tag"),
    Rule(r"&(MD|mdash|ndash);|[\x96\x97\u2013-\u2015]", "dash"),
    Rule("&amp;", "ampersand"),
    Rule("&(HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);", "token"),
    Rule("{WORD}", "word", before="{CLITIC}"),
    Rule("{BEFORE_NOT}", "word", before="{NOT}"),
    Rule("{WORD}", "word"),
    Rule("{APOSTROPHE_WORD}", "token"),
    Rule("y{APOSTROPHE}", "token", before=r"\l"),
    Rule("{URL}", "token"),
    Rule("{LIKELY_URL}", "token"),
    Rule("{EMAIL}", "token"),
    Rule("{TWITTER}", "token"),
    Rule("{CLITIC}", "right quote", before="[^A-Za-z]"),
    Rule("{NOT}", "right quote", before="[^A-Za-z]"),
    Rule("{DIGIT}{1,2}[-/]{DIGIT}{1,2}[-/]{DIGIT}{2,4}", "token"),
    Rule("{SIGNED}", "word"),
    Rule(r"[\u207a\u207b\u208a\u208b]?([\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)", "token"),
    Rule("{FRACTION}", "spaced"),
    Rule(r"[\u00bc-\u00be\u2153-\u215e]", "fraction"),
    Rule(
        r"-(RRB|LRB|RCB|LCB|RSB|LSB)-|C\.D\.s|pro-|anti-|S(&|&amp;)P-500|S(&|&amp;)Ls|Cap{APOSTROPHE}n|c{APOSTROPHE}est",
        "ampersand",
    ),
    Rule("{SLASHED}", "token"),
    Rule(r"[A-Z]*\$|#", "token"),
    Rule(r"[\u00a2-\u00a5\x80\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]", "currency"),
    Rule(r"{ACRONYM}\.", "acronym", before="{BLANK}+{SENTENCE_START}{BLANK}"),
    Rule("{BEFORE_NUMBER}", "token", before=r"{BLANK}?\d"),
    Rule(r"(pt[eyEY]|co)\.", "token", before="{SPACE}(ltd|lim)"),
    Rule("{USUALLY_LAST}", "period again", before=r"{BLANK}({BLANK}|\U|{TAG})"),
    Rule("{USUALLY_LAST}", "token", before="[^][^]"),
    Rule("{USUALLY_LAST}", "period again"),
    Rule(r"{NEVER_LAST}\.", "token"),
    Rule("{NEVER_LAST}", "token", before="{SPACE}"),
    Rule("{ACRONYM}", "token", before="{BLANK}"),
    Rule("{APOSTROPHE}[0-9][0-9]", "token", before="{BLANK}"),
    Rule("{FILE_NAME}", "token", before=r"({BLANK}|[.?!,])"),
    Rule(r"{WORD}\.", "word", before="{INSIDE}"),
    Rule("{PHONE}", "phone"),
    Rule("{DOUBLE_QUOTE}", "left quote", before="[A-Za-z0-9$]"),
    Rule("{DOUBLE_QUOTE}", "right quote"),
    Rule(r"\x7f", "skip"),
    Rule("<|&lt;", "<"),
    Rule(">|&gt;", ">"),
    Rule("{SMILEY}", "parentheses", before="[^A-Za-z0-9]"),
    Rule("{ASIAN_SMILEY}", "parentheses"),
    Rule(r"\{", "-LCB-"),
    Rule(r"\}", "-RCB-"),
    Rule(r"\[", "-LSB-"),
    Rule(r"\]", "-RSB-"),
    Rule(r"\(", "-LRB-"),
    Rule(r"\)", "-RRB-"),
    Rule("-+", "hyphens"),
    Rule("{DOTS}", "ellipsis"),
    Rule(r"@+|#+|_+", "token"),
    Rule(r"\*+|(\\\*){1,3}", "token"),
    Rule("{INSIDE}", "token"),
    Rule("[?!]+", "token"),
    Rule(r"[.\u00a1\u00bf\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002]", "token"),
    Rule("=", "token"),
    Rule("/", "token"),
    Rule(r"{COMPOUND}\.", "word", before="{INSIDE}"),
    Rule("{COMPOUND}", "word"),
    Rule(r"{HYPHENATED}\.", "token", before="{INSIDE}"),
    Rule("{HYPHENATED}", "token"),
    Rule(r"{ANDED}\.", "ampersand", before="{INSIDE}"),
    Rule("{ANDED}", "ampersand"),
    Rule("'", "left quote", before=r"[A-Za-z][^ \t\n\r\u00a0]"),
    Rule("{CLITIC}", "right quote"),
    Rule("{NOT}", "right quote"),
    Rule("{QUOTES}", "right quote"),
    Rule("<<|>>", "token"),
    Rule(rf"[{_SYMBOLS}]", "token"),
    Rule(r"\0|{SPACE}+|[\u200b\u200e\u200f\ufeff]", "skip"),
    Rule("{NEWLINE}", "newline"),
    Rule("&nbsp;", "skip"),
    Rule(r"[^\n]", "skip"),
)
