/* Questions with an answer of the library's own, and errors: tool variables, limits of info, names, which communicator hears
 * of a failure among several requests. queries [ROUNDS] [SEED] */
#include <mpi.h>
#include "check.h"
static int heard[2];
static MPI_T_enum kept;
static void first(MPI_Comm *c, int *code, ...) { (void)c; (void)code; heard[0]++; }
static void second(MPI_Comm *c, int *code, ...) { (void)c; (void)code; heard[1]++; }
static int class_of(int code) { int class; MPI_Error_class(code, &class); return class; }
static uint64_t variables(int max, int begun) {
    uint64_t result = 0;
    int count, integers = 0;
    MPI_T_cvar_get_num(&count);
    for (int i = 0; i < count && i < max; i++) {
        char name[256], text[1024];
        int name_len = sizeof name, text_len = sizeof text, verbosity, bind, scope;
        MPI_Datatype type = MPI_DATATYPE_NULL;
        MPI_T_enum all;
        if (MPI_T_cvar_get_info(i, name, &name_len, &verbosity, &type, &all, text, &text_len, &bind, &scope) != MPI_SUCCESS) continue;
        int bytes = 0;
        CHECK(type != MPI_DATATYPE_NULL);
        if (begun) CHECK(MPI_Type_size(type, &bytes) == MPI_SUCCESS && bytes <= 16);
        integers += type == MPI_INT;
        result = hash(result, name, strlen(name));
        result = hash(result, &bytes, sizeof bytes);
        /* an enumeration that was heard of before a checkpoint is as good as a new one */
        if (all != MPI_T_ENUM_NULL && kept == MPI_T_ENUM_NULL) kept = all;
        MPI_T_cvar_handle handle;
        int elements;
        if (bind == MPI_T_BIND_NO_OBJECT && MPI_T_cvar_handle_alloc(i, NULL, &handle, &elements) == MPI_SUCCESS)
            CHECK(elements > 0 && MPI_T_cvar_handle_free(&handle) == MPI_SUCCESS);
    }
    if (kept != MPI_T_ENUM_NULL) {
        char name[256];
        int items, value, name_len = sizeof name;
        CHECK(MPI_T_enum_get_info(kept, &items, name, &name_len) == MPI_SUCCESS && items > 0);
        name_len = sizeof name;
        CHECK(MPI_T_enum_get_item(kept, items - 1, &value, name, &name_len) == MPI_SUCCESS);
        result = hash(result, name, strlen(name));
        result = hash(result, &value, sizeof value);
    }
    CHECK(integers > 0 || max < 50);
    MPI_T_pvar_get_num(&count);
    for (int i = 0; i < count && i < max; i++) {
        char name[256], text[1024];
        int name_len = sizeof name, text_len = sizeof text, verbosity, class, bind, readonly, continuous, atomic;
        MPI_Datatype type = MPI_DATATYPE_NULL;
        MPI_T_enum all;
        if (MPI_T_pvar_get_info(i, name, &name_len, &verbosity, &class, &type, &all, text, &text_len, &bind, &readonly,
                                &continuous, &atomic) != MPI_SUCCESS) continue;
        CHECK(type != MPI_DATATYPE_NULL);
        result = hash(result, name, strlen(name));
    }
    return result;
}
int main(int argc, char **argv) {
    int level, rank;
    CHECK(MPI_T_init_thread(MPI_THREAD_SINGLE, &level) == MPI_SUCCESS);
    uint64_t result = variables(50, 0);
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    long rounds = argument(argc, argv, 1, 100);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
    MPI_Comm a, b;
    MPI_Errhandler one, two;
    MPI_Comm_dup(MPI_COMM_SELF, &a);
    MPI_Comm_dup(MPI_COMM_SELF, &b);
    MPI_Comm_create_errhandler(first, &one);
    MPI_Comm_create_errhandler(second, &two);
    MPI_Comm_set_errhandler(a, one);
    MPI_Comm_set_errhandler(b, two);
    for (long round = 0; round < rounds; round++) {
        result = hash(result, &(uint64_t){variables(5, 1)}, 8);
        MPI_Info info;
        char key[64], value[512];
        MPI_Info_create(&info);
        memset(key, 'k', sizeof key);
        memset(value, 'v', sizeof value);
        key[MPI_MAX_INFO_KEY] = 0;
        CHECK(class_of(MPI_Info_set(info, key, "x")) == MPI_ERR_INFO_KEY);
        key[MPI_MAX_INFO_KEY - 1] = 0;
        CHECK(MPI_Info_set(info, key, "x") == MPI_SUCCESS);
        value[MPI_MAX_INFO_VAL] = 0;
        CHECK(class_of(MPI_Info_set(info, "key", value)) == MPI_ERR_INFO_VALUE);
        value[MPI_MAX_INFO_VAL - 1] = 0;
        CHECK(MPI_Info_set(info, "key", value) == MPI_SUCCESS);
        char back[MPI_MAX_INFO_KEY + 1];
        MPI_Info_get_nthkey(info, 0, back);
        CHECK(strcmp(back, key) == 0);
        MPI_Info_free(&info);
        char name[MPI_MAX_OBJECT_NAME];
        int length;
        CHECK(class_of(MPI_Type_get_name(MPI_DATATYPE_NULL, name, &length)) == MPI_ERR_TYPE);
        MPI_Type_get_name(MPI_INT, name, &length);
        result = hash(result, name, (size_t)length);
        /* the message on `a` is too long for its receive, the one on `b` is not */
        MPI_Request q[2];
        int in[2] = {-1, -1}, out[2] = {rank, (int)round}, found, where[2];
        MPI_Status status[2];
        heard[0] = heard[1] = 0;
        MPI_Irecv(&in[0], 1, MPI_INT, 0, 1, a, &q[0]);
        MPI_Irecv(&in[1], 1, MPI_INT, 0, 1, b, &q[1]);
        if (round % 8 == 0) pace();
        MPI_Send(&out[1], 1, MPI_INT, 0, 1, b);
        MPI_Send(out, 2, MPI_INT, 0, 1, a);
        for (int done = 0; done < 2; done += found) MPI_Waitsome(2, q, &found, where, status);
        CHECK(heard[1] == 0 && in[1] == round);
        result = hash(result, in, sizeof in);
    }
    MPI_Comm_free(&a);
    MPI_Comm_free(&b);
    MPI_Errhandler_free(&one);
    MPI_Errhandler_free(&two);
    MPI_T_finalize();
    int status = rank == 0 ? finish(result) : 0;
    MPI_Finalize();
    return status;
}
