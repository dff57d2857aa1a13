// SPDX-License-Identifier: GPL-2.0-only
/* The device: who may use it, and which request goes where. */
#include <linux/capability.h>
#include <linux/compat.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "internal.h"

struct handle {
	struct mutex lock;		/* guards the pointer; taken before a compartment's own lock */
	struct o2c_compartment *compartment;
};

static bool allowed(void)
{
	return capable(CAP_SYS_ADMIN) && capable(CAP_BPF);
}

static int device_open(struct inode *inode, struct file *file)
{
	struct handle *handle;

	if (!allowed())
		return -EPERM;
	handle = kzalloc(sizeof(*handle), GFP_KERNEL);
	if (!handle)
		return -ENOMEM;
	mutex_init(&handle->lock);
	file->private_data = handle;
	return 0;
}

static int device_release(struct inode *inode, struct file *file)
{
	struct handle *handle = file->private_data;

	if (handle->compartment)
		o2c_compartment_close(handle->compartment);
	kfree(handle);
	return 0;
}

static long version(void __user *argument)
{
	struct o2c_version answer = {
		.abi = O2C_ABI_VERSION,
		.site_size = sizeof(struct o2c_site),
		.max_batch = O2C_MAX_BATCH,
		.features = O2C_FEATURE_DRAIN | O2C_FEATURE_KVMALLOC | O2C_FEATURE_PAGES | O2C_FEATURE_BULK |
			    O2C_FEATURE_LARGE | O2C_FEATURE_TRACEPOINT | O2C_FEATURE_FREE_BULK,
	};

	return copy_to_user(argument, &answer, sizeof(answer)) ? -EFAULT : 0;
}

static long create(struct handle *handle, void __user *argument)
{
	struct o2c_create request;

	if (handle->compartment)
		return -EBUSY;
	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	return o2c_compartment_create(&request, &handle->compartment);
}

static long open_existing(struct handle *handle, void __user *argument)
{
	struct o2c_compartment *compartment;
	struct o2c_open request;

	if (handle->compartment)
		return -EBUSY;
	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	compartment = o2c_compartment_open(request.name);
	if (IS_ERR(compartment))
		return PTR_ERR(compartment);
	handle->compartment = compartment;
	return 0;
}

static long program(struct o2c_compartment *compartment, void __user *argument)
{
	struct o2c_program request;
	long ret;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	ret = o2c_compartment_program(compartment, &request);
	if (!ret && copy_to_user(argument, &request, sizeof(request)))
		return -EFAULT;
	return ret;
}

static long attach(struct o2c_compartment *compartment, void __user *argument)
{
	struct o2c_attach request;
	long ret;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	ret = o2c_attach(compartment, &request);
	/* also on failure: which site, and why */
	if (copy_to_user(argument, &request, sizeof(request)))
		return -EFAULT;
	return ret;
}

static long stats(struct o2c_compartment *compartment, void __user *argument)
{
	struct o2c_stats request;
	long ret;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	ret = o2c_compartment_stats(compartment, &request);
	if (!ret && copy_to_user(argument, &request, sizeof(request)))
		return -EFAULT;
	return ret;
}

static long info(struct o2c_compartment *compartment, void __user *argument)
{
	struct o2c_info answer;

	o2c_compartment_info(compartment, &answer);
	return copy_to_user(argument, &answer, sizeof(answer)) ? -EFAULT : 0;
}

static long heap(struct o2c_compartment *compartment, void __user *argument)
{
	struct o2c_heap request;
	long ret;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	ret = o2c_heap_create(compartment, &request);
	if (!ret && copy_to_user(argument, &request, sizeof(request)))
		return -EFAULT;
	return ret;
}

static long heap_stats(struct o2c_compartment *compartment, void __user *argument)
{
	struct o2c_heap_stats answer;

	if (!compartment->heap)
		return -ENODATA;
	o2c_heap_stats(compartment->heap, &answer);
	return copy_to_user(argument, &answer, sizeof(answer)) ? -EFAULT : 0;
}

static long drain(struct o2c_compartment *compartment, void __user *argument)
{
	struct o2c_drain request;
	long ret;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	ret = o2c_drain(compartment, &request);
	if (!ret && copy_to_user(argument, &request, sizeof(request)))
		return -EFAULT;
	return ret;
}

static long tracepoint(struct o2c_compartment *compartment, void __user *argument)
{
	struct o2c_tracepoint request;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	return o2c_hook_add(compartment, &request);
}

static long on_compartment(struct o2c_compartment *compartment, unsigned int request, void __user *argument)
{
	long ret;

	if (!compartment)
		return -ENODEV;
	if (mutex_lock_interruptible(&compartment->lock))
		return -ERESTARTSYS;
	if (compartment->dead) {
		ret = -ENODEV;
		goto out;
	}
	switch (request) {
	case O2C_IOC_PROGRAM:
		ret = program(compartment, argument);
		break;
	case O2C_IOC_ATTACH:
		ret = attach(compartment, argument);
		break;
	case O2C_IOC_COMMIT:
		ret = o2c_compartment_commit(compartment);
		break;
	case O2C_IOC_STATS:
		ret = stats(compartment, argument);
		break;
	case O2C_IOC_INFO:
		ret = info(compartment, argument);
		break;
	case O2C_IOC_DETACH:
		ret = o2c_compartment_detach(compartment);
		break;
	case O2C_IOC_HEAP:
		ret = heap(compartment, argument);
		break;
	case O2C_IOC_HEAP_STATS:
		ret = heap_stats(compartment, argument);
		break;
	case O2C_IOC_DRAIN:
		ret = drain(compartment, argument);
		break;
	case O2C_IOC_TRACEPOINT:
		ret = tracepoint(compartment, argument);
		break;
	default:
		ret = -ENOTTY;
	}
out:
	mutex_unlock(&compartment->lock);
	return ret;
}

static long device_ioctl(struct file *file, unsigned int request, unsigned long raw)
{
	struct handle *handle = file->private_data;
	void __user *argument = (void __user *)raw;
	long ret;

	if (!allowed())
		return -EPERM;
	if (request == O2C_IOC_VERSION)
		return version(argument);
	if (mutex_lock_interruptible(&handle->lock))
		return -ERESTARTSYS;
	switch (request) {
	case O2C_IOC_CREATE:
		ret = create(handle, argument);
		break;
	case O2C_IOC_OPEN:
		ret = open_existing(handle, argument);
		break;
	default:
		ret = on_compartment(handle->compartment, request, argument);
	}
	mutex_unlock(&handle->lock);
	return ret;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.open = device_open,
	.release = device_release,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "o2c",
	.mode = 0600,
	.fops = &operations,
};

static int __init o2c_init(void)
{
	int ret;

	BUILD_BUG_ON(sizeof(struct o2c_site) != 80);
	BUILD_BUG_ON(sizeof(struct o2c_attach) != 40);
	BUILD_BUG_ON(sizeof(struct o2c_site_stats) != 56);
	BUILD_BUG_ON(sizeof(struct o2c_info) != 128);
	BUILD_BUG_ON(sizeof(struct o2c_tracepoint) != 56);
	o2c_kill_init();
	o2c_lookup_init();
	ret = o2c_drain_init();
	if (ret)
		return ret;
	ret = o2c_poison_init();
	if (ret)
		goto no_poison;
	ret = misc_register(&device);
	if (ret)
		goto no_device;
	return 0;
no_device:
	o2c_poison_exit();
no_poison:
	o2c_drain_exit();
	return ret;
}

static void __exit o2c_exit(void)
{
	misc_deregister(&device);
	o2c_drain_exit();
	o2c_poison_exit();
	o2c_kill_exit();
	o2c_heap_exit();
}

module_init(o2c_init);
module_exit(o2c_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Carries out what O2C's eBPF policies decide");
MODULE_VERSION("0.1.0");
