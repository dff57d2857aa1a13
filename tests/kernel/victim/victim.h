/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What user space asks of the victim module: one ioctl a scenario, attack or proper use.
 *
 * Every attack is harmless where nothing stops it: what it overwrites or frees belongs to the bystander
 * module for that purpose.
 */
#ifndef O2C_TEST_VICTIM_H
#define O2C_TEST_VICTIM_H

#include <linux/types.h>
#include <linux/ioctl.h>

/* Proper use of the same functions, with objects of the module's own. */
#define VICTIM_PROPER           _IO('V', 0)

#define VICTIM_HEAP_OVERFLOW    _IO('V', 1)
#define VICTIM_USE_AFTER_FREE   _IO('V', 2)
#define VICTIM_ARBITRARY_STORE  _IO('V', 3)
#define VICTIM_MEMCPY           _IO('V', 4)
#define VICTIM_REP_MOVS         _IO('V', 5)
#define VICTIM_BIT_OPERATION    _IO('V', 6)
#define VICTIM_SHARED_FIELD     _IO('V', 7)
#define VICTIM_RETURN_ADDRESS   _IO('V', 8)
#define VICTIM_FUNCTION_POINTER _IO('V', 9)
#define VICTIM_DANGEROUS_CALL   _IO('V', 10)
#define VICTIM_FOREIGN_ARGUMENT _IO('V', 11)
#define VICTIM_WRONG_TYPE       _IO('V', 12)
#define VICTIM_FORGED_SKB       _IO('V', 13)
#define VICTIM_FORGED_LIST      _IO('V', 14)
#define VICTIM_FOREIGN_FREE     _IO('V', 15)
#define VICTIM_TIMER_CALLBACK   _IO('V', 16)
/* The same, after the timer was handed to the kernel: the kernel makes the call, no code of the module. */
#define VICTIM_PENDING_TIMER    _IO('V', 17)
/* Touch an object that was allocated when the module was loaded, before any policy. */
#define VICTIM_OLD_OBJECT       _IO('V', 18)
#define VICTIM_OLD_FOREIGN      _IO('V', 19)

/* Write through a pointer to a freed object whose memory the bystander has got meanwhile, if it can. */
#define VICTIM_STALE_NEIGHBOUR  _IO('V', 20)
/* Proper use of every way to allocate and to free: a cache of its own, RCU, copies, large memory, whole pages. */
#define VICTIM_ALLOCATORS       _IO('V', 21)
/* Allocate until nothing is left, at most 4096 objects of 1000 bytes; free them; how many there were. */
#define VICTIM_FILL             _IO('V', 22)
/* Keep an object of its own cache; write to it; have it freed by RCU. */
#define VICTIM_KEEP             _IO('V', 23)
#define VICTIM_USE_KEPT         _IO('V', 24)
#define VICTIM_RELEASE          _IO('V', 25)

/* A pointer that may lead to a kernel function does, with an argument that is not the module's. */
#define VICTIM_POINTER_TO_FREE  _IO('V', 26)
#define VICTIM_POINTER_TO_COPY  _IO('V', 27)
/* An object of the module's own in place of one that the kernel gave. */
#define VICTIM_FORGED_OBJECT    _IO('V', 28)
/* Free the object that was allocated when the module was loaded, and allocate another, zeroed, in its place. */
#define VICTIM_RENEW_OLD        _IO('V', 29)
/* Have the kernel copy to where an iterator leads that the module has made up: into the kernel's memory. */
#define VICTIM_FORGED_ITERATOR  _IO('V', 30)
/* Stop a timer of the module's own that only seems to wait: its link leads to where the kernel shall write. */
#define VICTIM_FORGED_TIMER     _IO('V', 31)

#endif
