"""The Chinese label file of the ImageNet-1k model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LABELS = ROOT / "image/wuwan_worker/bundles/imagenet-zh/labels.tsv"
BUILDER = ROOT / "tools/labels/build_labels.py"
WORDNET = Path("/usr/share/wordnet")

TRADITIONAL = frozenset(
    "來倉個們倫偉側傘備傳債傷償優兒內兩冊凍別剛劃劇劍動勝勞勢區協單嚴國圍園圓圖團場塊塗壓壘壞壩壺"
    "壽夢夾奪婦孫學實寧寫寬寶將專尋對導層屬島嶺帥師帶幣幫幹廁廚廟廠廣張強彈彎從復恆惡愛態慶憲應懶"
    "戲戶掃掛採揀揚換擊擋擔據擺擾攝敗數斷時晝暈暫曬書會東條極樂樓標樣樹橋機橫檢檯檸櫃櫻欄權歐歡歲"
    "歷殘殺殼氣決沒沖況淚淨測湯準溝溫滅滾滿漁漢潔澤濃濕濱濾灑灘灣災為烏無煉煙煩熱燈燒燭爐爭爺爾牆"
    "牽狀狹獅獎獨獲獵獸獻現瑤瑪環瓏甕產畢畫異當痠療癢發盜盞監盤盧眾睏睜礎礦禮禿種稱穀積窩窪竄竊筆"
    "節築簡簽籃籠糧糾紀約紅紋納紗紙紮細終組結給絨絲綠維網綿緊線緣編緬縣縫總績織繩繪繫纖罈罰羅義習"
    "聖聞聯聲職聽脫腦腳膚膠臉臘臥臨臺舉舊艙艦藝藥蘆蘇蘋蘭處號蛺蝦蝸螞螢蟬蟲蟻蠍蠶衛裝裡製褲襠襪襯"
    "見親覺觀計訊記訪設許試詩話語說誰調請論證識譯議護讀變讓豬貓貝貨貴買賣質購賽贈車軌軍較載輕輛輪"
    "轉轎連進運過達遠還邊鄉鄰醫釀釋鉛鉤銀銅鋸鋼錄錘錶鍋鍵鎖鏟鏡鐘鐵鑰鑽長門閃閉開間閣閱關陰陽階際"
    "雜雞離難雲電霧靈靜韓頁頂項順頭題顏類顯風颱飛飯飲飾餅館馬駝騎驅驗髮鬆鬍鬥鬧魚魯鮑鯊鯨鰻鱷鳥鴨"
    "鴿鵝鵡鶴鷹鷺鸚鹹麗麥麵黃點齊齒龍龜"
)
ABSTRACT = frozenset(
    [
        "实体",
        "物体",
        "客体",
        "对象",
        "整体",
        "人造物",
        "人工制品",
        "东西",
        "事物",
        "物品",
        "物质",
        "生物",
        "有机体",
        "器械",
        "装置",
        "设备",
        "器具",
        "用具",
        "结构",
        "单位",
        "覆盖物",
        "抽象",
        "脊索动物",
        "脊椎动物",
        "无脊椎动物",
        "胎盘动物",
        "商品",
        "消费品",
        "自然物",
        "部件",
    ]
)

Row = tuple[str, str, str, list[str]]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Return index, label, id and broader terms of each row."""
    found: list[Row] = []
    for line in LABELS.read_text(encoding="utf-8").split("\n")[1:-1]:
        index, label, synset, broader = line.split("\t")
        found.append((index, label, synset, broader.split("|")))
    return found


def test_file_form() -> None:
    """The file is UTF-8 without a mark, ends its lines with a newline only and has the header."""
    data = LABELS.read_bytes()
    assert not data.startswith(b"\xef\xbb\xbf")
    assert b"\r" not in data
    assert data.endswith(b"\n")
    assert not data.endswith(b"\n\n")
    assert data.decode("utf-8").split("\n")[0] == "index\tlabel\tid\tbroader"


def test_thousand_rows_in_order(rows: list[Row]) -> None:
    """There are 1,000 rows and each index is its row's place."""
    assert [row[0] for row in rows] == [str(number) for number in range(1000)]


def test_ids(rows: list[Row]) -> None:
    """Each id is a noun synset's and no two rows share one."""
    ids = [row[2] for row in rows]
    assert [name for name in ids if not re.fullmatch(r"n[0-9]{8}", name)] == []
    assert len(set(ids)) == 1000
    assert ids == sorted(ids)


def test_labels_unique(rows: list[Row]) -> None:
    """No two labels are the same, even after NFKC and case folding."""
    folded = [unicodedata.normalize("NFKC", row[1]).casefold() for row in rows]
    assert len(set(folded)) == 1000


def test_texts_clean(rows: list[Row]) -> None:
    """No name holds white space, control, format, punctuation or unassigned characters."""
    texts = {text for row in rows for text in (row[1], *row[3])}
    assert "" not in texts
    bad = [text for text in texts if any(unicodedata.category(c)[0] in "ZCPSM" for c in text)]
    assert bad == []
    assert [text for text in texts if unicodedata.normalize("NFC", text) != text] == []


def test_texts_chinese(rows: list[Row]) -> None:
    """Only the labels whose usual Chinese name holds Latin letters hold any."""
    latin = {text for row in rows for text in (row[1], *row[3]) if re.search("[A-Za-z0-9]", text)}
    assert latin == {"T恤", "CD播放器", "iPod", "福特T型车"}


def test_simplified(rows: list[Row]) -> None:
    """No label or broader term holds a character that is traditional only."""
    texts = {text for row in rows for text in (row[1], *row[3])}
    assert [text for text in texts if TRADITIONAL & set(text)] == []


def test_broader_count(rows: list[Row]) -> None:
    """Each label has one to four broader terms, none given twice and none its own name."""
    for _, label, _, broader in rows:
        assert 1 <= len(broader) <= 4, label
        assert len(set(broader)) == len(broader), label
        assert label not in broader


def test_broader_tree(rows: list[Row]) -> None:
    """Each broader term is always followed by the same parents, and no chain runs in a circle."""
    after: dict[str, list[str]] = {}
    for _, label, _, broader in rows:
        for place, term in enumerate(broader):
            assert after.setdefault(term, broader[place + 1 :]) == broader[place + 1 :], label
    for term, parents in after.items():
        assert term not in parents


def test_label_that_is_a_broader_term(rows: list[Row]) -> None:
    """A label that other rows use as a broader term has that term's parents."""
    after = {row[3][i]: row[3][i + 1 :] for row in rows for i in range(len(row[3]))}
    shared = [row for row in rows if row[1] in after]
    assert shared
    for _, label, _, broader in shared:
        assert broader == after[label], label


def test_no_abstract_terms(rows: list[Row]) -> None:
    """No broader term is an abstraction or a taxon that nobody searches for."""
    terms = {term for row in rows for term in row[3]}
    assert terms & ABSTRACT == set()
    assert [term for term in terms if term.endswith(("目", "纲", "亚目", "总科", "亚科"))] == []


@pytest.mark.parametrize(
    ("synset", "label", "terms"),
    [
        ("n02099601", "金毛寻回犬", {"犬", "动物"}),
        ("n02012849", "鹤", {"水鸟", "鸟"}),
        ("n03126707", "起重机", {"机械"}),
        ("n02963159", "开襟毛衣", {"毛衣", "服装"}),
        ("n02113186", "卡迪根威尔士柯基犬", {"柯基犬", "犬"}),
        ("n02123045", "虎斑猫", {"猫", "哺乳动物"}),
        ("n03492542", "硬盘", {"电脑配件"}),
        ("n03710637", "紧身连体衣", {"服装"}),
        ("n03710721", "连体泳衣", {"泳装"}),
        ("n04356056", "太阳镜", {"眼镜"}),
        ("n03773504", "导弹", {"武器"}),
        ("n02510455", "大熊猫", {"熊", "动物"}),
        ("n07753592", "香蕉", {"水果", "食物"}),
        ("n09472597", "火山", {"山", "自然景观"}),
    ],
)
def test_known_rows(rows: list[Row], synset: str, label: str, terms: set[str]) -> None:
    """Rows whose English word is easily taken for another have the right name and terms."""
    row = next(row for row in rows if row[2] == synset)
    assert row[1] == label
    assert terms <= set(row[3])


def test_file_is_what_the_builder_makes(tmp_path: Path) -> None:
    """The builder makes the label file again byte for byte from its tables and the sources."""
    data = os.environ.get("WUWAN_TEST_DATA")
    if not data or not (Path(data) / "labels" / "imagenet_synsets.txt").is_file():
        pytest.skip("WUWAN_TEST_DATA names no folder with labels/imagenet_synsets.txt")
    if not (WORDNET / "data.noun").is_file():
        pytest.skip("WordNet (Debian: wordnet-base) is not installed")
    made = tmp_path / "labels.tsv"
    command = [sys.executable, str(BUILDER), "--wordnet", str(WORDNET)]
    command += ["--sources", str(Path(data) / "labels"), "--output", str(made)]
    subprocess.run(command, check=True, timeout=120)
    assert made.read_bytes() == LABELS.read_bytes()
