#include "textflag.h"

#define SYS_exit_group 231
#define SYS_prlimit64 302
#define SYS_clone3 435
#define SYS_close_range 436
#define CLOSE_RANGE_UNSHARE 2
#define SIZEOF_clone_args 88
#define SIZEOF_Call 56

// func clone(args *cloneArgs, files uintptr, calls *Call, n uintptr, failed *failure) uintptr
//
// The new process is on the same stack, and does not use it.
TEXT ·clone(SB),NOSPLIT,$0-48
	MOVQ	args+0(FP), DI
	MOVQ	files+8(FP), R9
	MOVQ	calls+16(FP), R12
	MOVQ	n+24(FP), R13
	MOVQ	failed+32(FP), BX
	MOVQ	$SIZEOF_clone_args, SI
	MOVQ	$SYS_clone3, AX
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	AX, ret+40(FP)
	RET

child:
	MOVQ	R9, DI
	MOVL	$0xffffffff, SI
	MOVQ	$CLOSE_RANGE_UNSHARE, DX
	MOVQ	$SYS_close_range, AX
	SYSCALL
	TESTQ	AX, AX
	JEQ	next
	INCQ	R13
	JMP	failed
next:
	MOVQ	0(R12), AX
	MOVQ	8(R12), DI
	MOVQ	16(R12), SI
	MOVQ	24(R12), DX
	MOVQ	32(R12), R10
	MOVQ	40(R12), R8
	SYSCALL
	CMPQ	AX, $-4095
	JCS	done
	CMPQ	48(R12), $0
	JNE	done
failed:
	NEGQ	AX
	MOVQ	AX, 0(BX)
	MOVQ	R13, 8(BX)
	JMP	exit
done:
	ADDQ	$SIZEOF_Call, R12
	DECQ	R13
	JNE	next
exit:
	MOVQ	$127, DI
	MOVQ	$SYS_exit_group, AX
	SYSCALL
	JMP	exit

// func prlimit(resource uintptr, old *[2]uint64) uintptr
TEXT ·prlimit(SB),NOSPLIT,$0-24
	MOVQ	$0, DI
	MOVQ	resource+0(FP), SI
	MOVQ	$0, DX
	MOVQ	old+8(FP), R10
	MOVQ	$SYS_prlimit64, AX
	SYSCALL
	MOVQ	AX, ret+16(FP)
	RET
