/* A stand-in for libnvidia-ml.so.1: the functions that are called, with the signatures of nvml.h.
   Card 0 is whole, card 1 is cut into two MIG slices. NVML_HANGS names a function that never comes back. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int nvmlReturn_t;
typedef struct card *nvmlDevice_t;
typedef struct { unsigned watched, next; } *nvmlEventSet_t;
enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10 };

struct card { const char *uuid, *name; unsigned long long memory; int parent, slice; unsigned asked; };
static struct card cards[] = {
    {"GPU-11111111-aaaa", "NVIDIA L4", 24ull << 30, -1, -1, 0},
    {"GPU-22222222-bbbb", "NVIDIA A100", 80ull << 30, -1, -1, 0},
    {"MIG-33333333-cccc", "NVIDIA A100 MIG 1g.10gb", 10ull << 30, 1, 0, 0},
    {"MIG-44444444-dddd", "NVIDIA A100 MIG 1g.10gb", 10ull << 30, 1, 1, 0},
};

static void maybe_hang(const char *function) {
    const char *hangs = getenv("NVML_HANGS");
    while (hangs && !strcmp(hangs, function)) pause();
}

static nvmlReturn_t copy(char *to, unsigned length, const char *from) {
    if (strlen(from) >= length) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void) { return SUCCESS; }
nvmlReturn_t nvmlInitWithFlags(unsigned flags) { (void)flags; return SUCCESS; }
nvmlReturn_t nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(nvmlReturn_t result) { (void)result; return "an error"; }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return SUCCESS; }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    if (index > 1) return INVALID_ARGUMENT;
    *device = &cards[index];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    for (unsigned at = 0; at < 4; at++)
        if (!strcmp(cards[at].uuid, uuid)) { *device = &cards[at]; return SUCCESS; }
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned length) { return copy(uuid, length, device->uuid); }
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned length) { return copy(name, length, device->name); }

typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    memory->total = device->memory;
    memory->used = 3ull << 30;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

typedef struct { unsigned gpu, memory; } nvmlUtilization_t;
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    maybe_hang("nvmlDeviceGetUtilizationRates");
    if (device->parent >= 0) return NOT_SUPPORTED;
    utilization->gpu = 97;
    utilization->memory = 40;
    return SUCCESS;
}

typedef struct { unsigned version; int sensorType, temperature; } nvmlTemperature_t;
nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature) {
    if (device->parent >= 0) return NOT_SUPPORTED;
    if (temperature->version != (sizeof(nvmlTemperature_t) | 1u << 24) || temperature->sensorType) return INVALID_ARGUMENT;
    temperature->temperature = 64;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *milliwatts) {
    if (device->parent >= 0) return NOT_SUPPORTED;
    *milliwatts = 70250;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
    if (device->parent >= 0) return NOT_SUPPORTED;
    *millijoules = 5000000000ull + 1500ull * device->asked++;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, int type, unsigned *clock) {
    if (device->parent >= 0) return NOT_SUPPORTED;
    if (type != 1 && type != 2) return INVALID_ARGUMENT;
    *clock = type == 1 ? 2040 : 6251;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons) {
    if (device->parent >= 0) return NOT_SUPPORTED;
    *reasons = 0x04 | 0x20 | 0x01;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, int type, int counter, unsigned long long *count) {
    if (device->parent >= 0) return NOT_SUPPORTED;
    *count = type == 1 && counter == 0 ? 2 : 1000;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, int counter, unsigned *value) {
    if (device->parent >= 0) return NOT_SUPPORTED;
    *value = counter == 0 ? 1000 : 2000;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    if (device == &cards[0]) return NOT_SUPPORTED;
    *current = *pending = 1;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned *count) { (void)device; *count = 7; return SUCCESS; }

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *slice) {
    if (device != &cards[1] || index > 1) return NOT_FOUND;
    *slice = &cards[2 + index];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t slice, nvmlDevice_t *device) {
    if (slice->parent < 0) return INVALID_ARGUMENT;
    *device = &cards[slice->parent];
    return SUCCESS;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) { *set = calloc(1, sizeof **set); return SUCCESS; }
nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) { free(set); return SUCCESS; }

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    if (device->parent >= 0) return NOT_SUPPORTED;
    if (types != 0x8) return INVALID_ARGUMENT;
    set->watched |= 1u << (device - cards);
    return SUCCESS;
}

typedef struct { nvmlDevice_t device; unsigned long long eventType, eventData; unsigned gpuInstanceId, computeInstanceId; } nvmlEventData_t;
nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned milliseconds) {
    static const unsigned long long xids[] = {31, 79};
    (void)milliseconds;
    if (!(set->watched & 2u) || set->next >= 2) return TIMEOUT;
    data->device = &cards[1];
    data->eventType = 0x8;
    data->eventData = xids[set->next++];
    data->gpuInstanceId = data->computeInstanceId = 0xFFFFFFFF;
    return SUCCESS;
}
