"""The page's sheet. Light, dark and print; contrast of text at least 4.5, of lines at least 3.

Series colours follow Okabe and Ito's palette for colour-blind readers, darkened on a light ground and lightened on a
dark one; marker and dashes tell them apart as well.
"""

STYLE = """
:root{color-scheme:light dark;--ground:#f6f7f9;--card:#fff;--ink:#1a1d21;--soft:#59616b;--line:#dde1e6;--warn:#8a4b00;
--warnground:#fdf3e3;--heat:213,94,0;--s1:#0072b2;--s2:#c4500a;--s3:#007e5b;--s4:#a8498a;--s5:#8a6d00;--s6:#2a7fb0;
--s7:#4a4f57;--s8:#8c2d2d}
@media(prefers-color-scheme:dark){:root{--ground:#14171a;--card:#1d2126;--ink:#e8eaed;--soft:#a5adb6;--line:#363c44;
--warn:#f3c07a;--warnground:#33281a;--heat:230,120,40;--s1:#56a9e8;--s2:#f0803c;--s3:#2fc296;--s4:#e0a0cb;--s5:#e0bf3a;
--s6:#8fd0f5;--s7:#b9c0c8;--s8:#f09a9a}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);font:1rem/1.55 system-ui,"DejaVu Sans",sans-serif}
main{max-width:78rem;margin:0 auto;padding:1.2rem 1rem 4rem}
h1{font-size:1.8rem;line-height:1.2;margin:.6rem 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:0 0 .5rem}
h3{font-size:1rem;margin:1.2rem 0 .4rem;overflow-wrap:anywhere}
p,.plain li{margin:.45rem 0;max-width:52rem;overflow-wrap:anywhere}
a{color:inherit}
code{overflow-wrap:anywhere;font-size:.92em}
.lead,.note,figcaption,caption{color:var(--soft)}
ul.verdict{list-style:none;padding:0;margin:.8rem 0}.verdict li{font-size:1.08rem;padding-left:.8rem;max-width:60rem;
border-left:.25rem solid var(--s1)}
.note,figcaption{font-size:.9rem}
section,header.top{background:var(--card);border:1px solid var(--line);border-radius:.7rem;padding:1.1rem 1.2rem;
margin:1rem 0;min-width:0}
p.warning{border:2px solid var(--warn);border-radius:.5rem;background:var(--warnground);padding:.5rem .7rem;
font-weight:600;max-width:none}
section.weak{border-left:.35rem solid var(--warn);background:var(--warnground)}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;margin:.6rem 0 0;padding:0;font-size:.92rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;margin:1rem 0 .3rem;padding:0}
.facts div{border:1px solid var(--line);border-radius:.5rem;padding:.5rem .7rem;min-width:0}
.facts dt{font-size:.82rem;color:var(--soft)}
.facts dd{margin:0;font-size:1.3rem;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:.7rem 0;max-width:100%}
.scroll:focus-visible{outline:2px solid var(--s1);outline-offset:2px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
caption{text-align:left;padding:0 0 .3rem;font-size:.9rem}
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{vertical-align:bottom;color:var(--soft);font-weight:600;line-height:1.25}
tbody th{font-weight:600;max-width:20rem;overflow-wrap:break-word}
tbody th code{white-space:nowrap}
td.n,th.n{text-align:right}
td.n{white-space:nowrap}
td.long{min-width:14rem;overflow-wrap:anywhere}
td small{display:block;color:var(--soft);font-size:.78rem;white-space:nowrap}
table.heat td,table.heat th{text-align:center;padding:.3rem .5rem;border:1px solid var(--line);white-space:nowrap}
table.heat td{background:rgba(var(--heat),calc(var(--v)*.62));-webkit-print-color-adjust:exact;print-color-adjust:exact}
table.heat td small{color:inherit}
table.heat td.own{background:none;color:var(--soft)}
table.heat th{min-width:0}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:1rem;margin:.7rem 0}
.plots figure,.matrices figure{margin:0;min-width:0}
svg.plot{display:block;width:100%;max-width:34rem;height:auto;stroke-linejoin:round;stroke-linecap:butt;
font-family:system-ui,"DejaVu Sans",sans-serif}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;margin:.5rem 0;padding:0;font-size:.9rem}
.key li{display:flex;align-items:center;gap:.45rem;min-width:0;overflow-wrap:anywhere}
.key svg{flex:none}
.matrices{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.2rem}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));gap:1rem;margin:.8rem 0}
.panel{border:1px solid var(--line);border-radius:.6rem;padding:.8rem;min-width:0}
.panel h3{margin:0 0 .5rem}
.three{display:grid;grid-template-columns:repeat(3,1fr);gap:.4rem}
.three figure{margin:0;min-width:0}
.three img{display:block;width:100%;height:auto;border-radius:.3rem;image-rendering:pixelated}
.three figcaption{font-size:.78rem}
pre{overflow:auto;max-height:26rem;padding:.7rem;border:1px solid var(--line);border-radius:.5rem;font-size:.82rem;
max-width:100%}
summary{cursor:pointer}
ul.columns{columns:2 26rem;column-gap:2rem;padding-left:1.2rem}
ul.columns li{break-inside:avoid;margin:0;padding:.25rem 0}
@media(max-width:48rem){table.stacked,.stacked tbody,.stacked tr,.stacked td,.stacked th,.stacked caption{display:block}
.stacked thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.stacked tr{border:1px solid var(--line);border-radius:.5rem;margin:.6rem 0;padding:.4rem .7rem}
.stacked td,.stacked td.n,.stacked tbody th{display:flex;justify-content:space-between;gap:.2rem 1rem;flex-wrap:wrap;
border:0;padding:.15rem 0;text-align:right;white-space:normal;max-width:none}
.stacked td::before{content:attr(data-name);color:var(--soft)}
.stacked td small{display:inline;flex-basis:100%}}
@media(max-width:40rem){main{padding:.6rem .5rem 2rem}section,header.top{padding:.8rem .7rem}h1{font-size:1.45rem}
table{font-size:.82rem}.facts dd{font-size:1.1rem}}
@media print{:root{--ground:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb}body{font-size:10pt}
section,header.top{border:0;padding:0;break-inside:auto}.plots figure,.panel,.matrices figure,tr{break-inside:avoid}
nav{display:none}.scroll{overflow:visible}pre{max-height:none;white-space:pre-wrap}h2,h3{break-after:avoid}}
"""
