#include "textflag.h"

#define SYS_exit_group 94
#define SYS_prlimit64 261
#define SYS_clone3 435
#define SYS_close_range 436
#define CLOSE_RANGE_UNSHARE 2
#define SIZEOF_clone_args 88
#define SIZEOF_Call 56

// func clone(args *cloneArgs, files uintptr, calls *Call, n uintptr, failed *failure) uintptr
//
// The new process is on the same stack, and does not use it.
TEXT ·clone(SB),NOSPLIT,$0-48
	MOVD	args+0(FP), R0
	MOVD	files+8(FP), R22
	MOVD	calls+16(FP), R19
	MOVD	n+24(FP), R20
	MOVD	failed+32(FP), R21
	MOVD	$SIZEOF_clone_args, R1
	MOVD	$SYS_clone3, R8
	SVC
	CBZ	R0, child
	MOVD	R0, ret+40(FP)
	RET

child:
	MOVD	R22, R0
	MOVD	$0xffffffff, R1
	MOVD	$CLOSE_RANGE_UNSHARE, R2
	MOVD	$SYS_close_range, R8
	SVC
	CBZ	R0, next
	ADD	$1, R20
	B	failed
next:
	MOVD	0(R19), R8
	MOVD	8(R19), R0
	MOVD	16(R19), R1
	MOVD	24(R19), R2
	MOVD	32(R19), R3
	MOVD	40(R19), R4
	SVC
	CMN	$4095, R0
	BCC	done
	MOVD	48(R19), R9
	CBNZ	R9, done
failed:
	NEG	R0, R0
	MOVD	R0, 0(R21)
	MOVD	R20, 8(R21)
	B	exit
done:
	ADD	$SIZEOF_Call, R19
	SUBS	$1, R20
	BNE	next
exit:
	MOVD	$127, R0
	MOVD	$SYS_exit_group, R8
	SVC
	B	exit

// func prlimit(resource uintptr, old *[2]uint64) uintptr
TEXT ·prlimit(SB),NOSPLIT,$0-24
	MOVD	$0, R0
	MOVD	resource+0(FP), R1
	MOVD	$0, R2
	MOVD	old+8(FP), R3
	MOVD	$SYS_prlimit64, R8
	SVC
	MOVD	R0, ret+16(FP)
	RET
