/* Property: a thread that computes all the time in every register never sees one change. */
#include "victim.h"
#include <fenv.h>
#include <pthread.h>

static _Atomic unsigned long rounds;
static _Atomic int wrong;

/* Holds sixteen vector registers (256 bits where there is AVX), the x87 stack and the direction flag over a while. */
static int hold(unsigned long seed)
{
	static _Thread_local unsigned char in[512] __attribute__((aligned(64))), out[512] __attribute__((aligned(64)));
	double pushed = (double)seed, popped = 0;
	for (unsigned i = 0; i < sizeof in; i++)
		in[i] = (unsigned char)(seed * 31 + i * 7);
	if (__builtin_cpu_supports("avx"))
		__asm__ volatile("vmovdqa (%0), %%ymm0\n vmovdqa 32(%0), %%ymm1\n vmovdqa 64(%0), %%ymm2\n"
				 "vmovdqa 96(%0), %%ymm3\n vmovdqa 128(%0), %%ymm13\n vmovdqa 160(%0), %%ymm14\n"
				 "vmovdqa 192(%0), %%ymm15\n fldl (%2)\n mov $20000, %%ecx\n 1: dec %%ecx\n jnz 1b\n"
				 "vmovdqa %%ymm0, (%1)\n vmovdqa %%ymm1, 32(%1)\n vmovdqa %%ymm2, 64(%1)\n"
				 "vmovdqa %%ymm3, 96(%1)\n vmovdqa %%ymm13, 128(%1)\n vmovdqa %%ymm14, 160(%1)\n"
				 "vmovdqa %%ymm15, 192(%1)\n fstpl (%3)\n"
				 :
				 : "r"(in), "r"(out), "r"(&pushed), "r"(&popped)
				 : "ecx", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm13", "xmm14", "xmm15");
	else {
		memcpy(out, in, sizeof in);
		popped = pushed;
	}
	return !memcmp(in, out, 224) && pushed == popped;
}

static void *compute(void *argument)
{
	fesetround(FE_UPWARD);
	for (unsigned long i = (unsigned long)(uintptr_t)argument;; i++) {
		if (!hold(i) || fegetround() != FE_UPWARD)
			wrong = 1;
		rounds++;
	}
	return NULL;
}

static void verify(void)
{
	unsigned long before = rounds;
	struct timespec pause = { .tv_nsec = 5000000 };
	for (int i = 0; i < 1000 && rounds < before + 100; i++)
		nanosleep(&pause, NULL);
	expect(rounds >= before + 100, "the threads stand still");
	expect(!wrong, "a register changed");
}

int main(int argc, char **argv)
{
	pthread_t ignored;
	victim(argc, argv);
	for (uintptr_t i = 1; i <= 3; i++)
		must(pthread_create(&ignored, NULL, compute, (void *)(i * 1000003)) ? -1 : 0);
	return serve(NULL, verify);
}
