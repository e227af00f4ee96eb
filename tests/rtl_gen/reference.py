import math
def rshift(v,r): return v if r==0 else (v>>r)+((v>>(r-1))&1)
def norm16(v,e):
    if v==0: return 0,-2048
    p=v.bit_length(); m = v<<(16-p) if p<=16 else rshift(v,p-16); e+=p-16
    if m==1<<16: m,e=1<<15,e+1
    return m,e
V=[round(65536/(1+math.exp(-i/32)))-32768 for i in range(513)]
def swiglu(g,u,Ag,Au):
    mg,eg=norm16(abs(g),Ag); mu,eu=norm16(abs(u),Au)
    c=-(eg+14)
    if mg==0: z=0
    elif c>=0: z=mg>>c
    elif c>=-2: z=mg<<-c
    else: z=1<<18
    if z>=1<<18: s=65536
    else:
        i,r=z>>9,z&511; s=32768+V[i]+(((V[i+1]-V[i])*r+256)>>9)
    if g<0: s=65536-s
    m1,e1=norm16(mg*mu,eg+eu); mh,eh=norm16(m1*s,e1-16)
    return int((g<0)!=(u<0)),mh,eh
