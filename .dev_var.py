import triton,subprocess,sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.builds import all_builds
def go(name,chs):
    b=all_builds()[f"sample {name}, 157184"]
    j=b.kernel.jitted
    sig={n:b.arguments.get(n,"constexpr") for n in j.arg_names}
    at={(i,):[["tt.divisibility",16]] for i,(n,k) in enumerate(sig.items()) if k.startswith("*")}
    for ch,op in chs:
        c=triton.compile(ASTSource(j,sig,{**b.constants,**ch},at),target=GPUTarget("cuda",90,32),options={**b.options,**op})
        open("/tmp/q.cubin","wb").write(c.asm["cubin"])
        r=subprocess.run([triton.knobs.nvidia.cuobjdump.path,"-res-usage","/tmp/q.cubin"],capture_output=True,text=True).stdout
        print(triton.__version__,name,ch,op,r[r.index("REG"):].split(" SHARED")[0],flush=True)
W=dict(num_warps=16)
go("gather",[({},{}),({"PIECES":1},{}),({"PIECES":2},{})])
