"""VOC 2012, SBD, COCO 2014 and Oxford-IIIT Pet as their archives are, a few small images each: the same folders, file
formats and oddities."""
import hashlib
import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from loopback import serving
from wsss_nb.data import download
from wsss_nb.ground.core import IGNORE_INDEX
from wsss_nb.data.pets import PET_BREEDS
from wsss_nb.data.voc import COCO_CLASSES, VOC_CLASSES
from wsss_nb.ground.io import voc_colormap

COCO_NUMBERS = [n for n in range(1, 91) if n not in (12,26,29,30,45,66,68,69,71,83)]  # the 80 categories that exist


def jpeg(size, seed, grey=False):
    noise = np.random.RandomState(seed).randint(256, size=(*size, 1 if grey else 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise.squeeze()).save(out, format="JPEG")
    return out.getvalue()

def png(label):
    im,out = Image.fromarray(label),io.BytesIO()
    im.putpalette(voc_colormap().tobytes())
    im.save(out, format="PNG")
    return out.getvalue()

def blob(size, label, seed, border=True):
    "Return a label map with a box of one class, with VOC's border of ignored pixels"
    rng,mask = np.random.RandomState(seed),np.zeros(size, np.uint8)
    y,x = rng.randint(2, size[0]-8),rng.randint(2, size[1]-8)
    if border: mask[y-1:y+7,x-1:x+7] = IGNORE_INDEX
    mask[y:y+6,x:x+6] = label
    return mask

def voc_xml(name, size, objects):
    boxes = "".join(
        f"\n\t<object>\n\t\t<name>{o}</name>\n\t\t<pose>Left</pose>\n\t\t<truncated>1</truncated>"
        f"\n\t\t<difficult>{k%2}</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>1</xmin>\n\t\t\t<ymin>1</ymin>"
        "\n\t\t\t<xmax>9</xmax>\n\t\t\t<ymax>9</ymax>\n\t\t</bndbox>"
        "\n\t\t<part>\n\t\t\t<name>head</name>\n\t\t</part>\n\t</object>" for k,o in enumerate(objects))
    return (f"<annotation>\n\t<folder>VOC2012</folder>\n\t<filename>{name}.jpg</filename>"
            "\n\t<source>\n\t\t<database>The VOC2007 Database</database>\n\t</source>"
            f"\n\t<size>\n\t\t<width>{size[1]}</width>\n\t\t<height>{size[0]}</height>"
            f"\n\t\t<depth>3</depth>\n\t</size>\n\t<segmented>1</segmented>{boxes}\n</annotation>\n").encode()


class Voc:
    "What is in the miniature of VOC: `train` and `val` have masks, `rest` are photos of SBD or of nobody"
    train = [f"2007_{n:06d}" for n in range(12)]
    val = [f"2007_{n:06d}" for n in range(50, 60)]
    rest = [f"2008_{n:06d}" for n in range(26)]
    @staticmethod
    def size(name): return 40+int(name[-2:])%7,60
    @staticmethod
    def label(name): return int(name[-2:])%20+1
    @classmethod
    def mask(cls, name): return blob(cls.size(name), cls.label(name), int(name[-6:]))
    @classmethod
    def objects(cls, name): return [VOC_CLASSES[cls.label(name)]] + (["person"] if int(name[-2:])%3 == 0 else [])

class Sbd:
    """What is in the miniature of SBD: photos of VOC's rest, of its train and of its val, dealt out over lists of
    its own"""
    train = Voc.rest[:12]+Voc.train[:3]+Voc.val[:2]
    val = Voc.rest[12:20]+Voc.train[3:5]+Voc.val[2:4]
    @staticmethod
    def mask(name):
        return blob(Voc.size(name), (Voc.label(name)+4)%20+1 if name in Voc.train else Voc.label(name),
                    int(name[-6:])+1, border=False)


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))

def voc_tar():
    "Return VOCtrainval_11-May-2012.tar"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        base = "VOCdevkit/VOC2012"
        for folder in ("VOCdevkit", base, f"{base}/JPEGImages"):
            info = tarfile.TarInfo(folder)
            info.type,info.mode = tarfile.DIRTYPE,0o755
            tar.addfile(info)
        for split,ids in dict(train=Voc.train, val=Voc.val, trainval=Voc.train+Voc.val).items():
            add(tar, f"{base}/ImageSets/Segmentation/{split}.txt", "".join(f"{i}\n" for i in ids).encode())
            add(tar, f"{base}/ImageSets/Main/dog_{split}.txt", b"2007_000000 -1\n")
        for k,i in enumerate(Voc.train+Voc.val+Voc.rest):
            add(tar, f"{base}/JPEGImages/{i}.jpg", jpeg(Voc.size(i), k))
            add(tar, f"{base}/Annotations/{i}.xml", voc_xml(i, Voc.size(i), Voc.objects(i)))
        for i in Voc.train+Voc.val:
            for folder in ("SegmentationClass", "SegmentationObject"):
                add(tar, f"{base}/{folder}/{i}.png", png(Voc.mask(i)))
    return out.getvalue()

def sbd_tgz():
    "Return benchmark.tgz: masks as MATLAB structures, with boundaries as sparse matrices"
    from scipy.io import savemat
    from scipy.sparse import csc_matrix
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        base = "benchmark_RELEASE/dataset"
        add(tar, "benchmark_RELEASE/README", b"Semantic contours from inverse detectors\n")
        for split in ("train","val"):
            add(tar, f"{base}/{split}.txt", "".join(f"{i}\n" for i in getattr(Sbd, split)).encode())
        for i in Sbd.train+Sbd.val:
            mask = Sbd.mask(i)
            edges = np.empty((20,1), object)
            for k in range(20): edges[k,0] = csc_matrix((mask == k+1).astype(float))
            for folder,key in (("cls","GTcls"), ("inst","GTinst")):
                mat = io.BytesIO()
                savemat(mat,
                        {key:{"Boundaries":edges, "Segmentation":mask,
                              "CategoriesPresent":np.unique(mask[mask > 0]).reshape(-1,1)}}, do_compression=True)
                add(tar, f"{base}/{folder}/{i}.mat", mat.getvalue())
            add(tar, f"{base}/img/{i}.jpg", jpeg(Voc.size(i), 0))
    return out.getvalue()


def coco_instances(split, n, seed, first):
    """Return the contents of instances_{split}2014.json: polygons of several parts, crowds as run lengths, every
    fifth image without objects"""
    rng = np.random.RandomState(seed)
    images,annotations = [],[]
    for k in range(n):
        h,w,number = 48+k%5,64+k%3,first+7*k
        images.append({"license":1, "file_name":f"COCO_{split}2014_{number:012d}.jpg",
                       "coco_url":"http://nowhere.invalid/x.jpg", "height":h, "width":w,
                       "date_captured":"2013-11-14 17:02:52", "id":number})
        for _ in range(0 if k%5 == 4 else 1+k%4):
            parts = [(np.round(rng.uniform(2, [w-2,h-2], (rng.randint(3, 9),2)), 2)).reshape(-1).tolist()
                     for _ in range(1+rng.randint(2))]
            xy = np.array(parts[0]).reshape(-1,2)
            annotations.append({"segmentation":parts, "area":round(float(rng.uniform(20, 900)), 4), "iscrowd":0,
                                "image_id":number, "bbox":[*xy.min(0).tolist(), *np.ptp(xy, 0).tolist()],
                                "category_id":COCO_NUMBERS[rng.randint(80)], "id":1000+len(annotations)})
        if k%6 == 1:
            runs = np.diff([0, *sorted(rng.choice(np.arange(1, h*w), 8, replace=False)), h*w]).tolist()
            annotations.append({"segmentation":{"counts":runs, "size":[h,w]}, "area":sum(runs[1::2]), "iscrowd":1,
                                "image_id":number, "bbox":[0,0,w,h], "category_id":1, "id":9*10**8+k})
    order = rng.permutation(len(annotations))  # as in the real files, neither by image nor by size
    return {"info":{"description":"COCO 2014 Dataset"}, "images":images, "licenses":[{"id":1}],
            "annotations":[annotations[i] for i in order],
            "categories":[{"supercategory":"thing", "id":n, "name":name.replace("_", " ")}
                          for n,name in zip(COCO_NUMBERS, COCO_CLASSES[1:])]}

class Coco:
    "What is in the miniature of COCO"
    train,val = coco_instances("train", 45, 0, 9),coco_instances("val", 20, 1, 42)

def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name,data in files.items(): z.writestr(name, data)
    return out.getvalue()

def coco_zips():
    "Return the three archives by name; every seventh photo is grey"
    photos = {f"{split}2014.zip": {f"{split}2014/": b""}
              | {f"{split}2014/{i['file_name']}": jpeg((i["height"],i["width"]), k, grey=k%7 == 3)
                 for k,i in enumerate(getattr(Coco, split)["images"])} for split in ("train","val")}
    notes = {f"annotations/{kind}_{split}2014.json": json.dumps(getattr(Coco, split) if kind == "instances"
                                                                else {"annotations":[]}).encode()
             for kind in ("instances","captions","person_keypoints") for split in ("train","val")}
    return {name:zipped(files) for name,files in (photos|{"annotations_trainval2014.zip":notes}).items()}


class Pets:
    """What is in the miniature of Oxford-IIIT Pet: two breeds of cats, two of dogs, breed by breed as in the lists, and
    photos that no list names"""
    breeds = ("Abyssinian", "beagle", "Bengal", "pug")
    trainval = [f"{breed}_{n}" for breed in breeds for n in (100, 101, 7)]
    test = [f"{breed}_{n}" for breed in breeds for n in (201, 34)]
    unlisted = ["Abyssinian_5", "pug_999"]
    odd = {"Abyssinian_101":"PNG", "beagle_7":"RGBA", "Bengal_100":"GIF", "pug_34":"palette", "pug_201":"grey"}
    @staticmethod
    def size(name): return 40+int(name.split("_")[-1])%7,60
    @staticmethod
    def breed(name): return PET_BREEDS.index(name.rsplit("_", 1)[0])
    @staticmethod
    def species(name): return 1 if name[0].isupper() else 2
    @classmethod
    def line(cls, name): return f"{name} {cls.breed(name)} {cls.species(name)} 1\n"
    @classmethod
    def trimap(cls, name):
        box = blob(cls.size(name), 1, sum(name.encode()))
        return np.where(box == IGNORE_INDEX, 3, 2-(box == 1)).astype(np.uint8)
    @classmethod
    def photo(cls, name, seed):
        "Return the bytes of NAME.jpg, whatever they are"
        kind = cls.odd.get(name)
        if kind in (None, "grey"): return jpeg(cls.size(name), seed, grey=kind == "grey")
        noise,out = np.random.RandomState(seed).randint(256, size=(*cls.size(name), 4)).astype(np.uint8),io.BytesIO()
        im = Image.fromarray(noise)
        if kind != "RGBA": im = im.convert("RGB")
        if kind in ("GIF", "palette"): im = im.quantize(32)
        im.save(out, format="GIF" if kind == "GIF" else "PNG")
        return out.getvalue()

def pets_archives():
    "Return images.tar.gz and annotations.tar.gz, packed on a Mac: a file ._NAME beside each"
    def packed(files):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            for name,data in files: add(tar, name, data)
        return out.getvalue()
    names = Pets.trainval+Pets.test+Pets.unlisted
    photos = [(f"images/{i}.jpg", Pets.photo(i, k)) for k,i in enumerate(names)]
    photos[-1] = (photos[-1][0], photos[-1][1][:100])  # a photo that cannot be read, and that no list names
    stray = [(f"images/{i}.mat", b"MATLAB 5.0 MAT-file") for i in ("Abyssinian_100", "Abyssinian_101")]
    head = ("#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n#SPECIES: 1:Cat 2:Dog\n"
            "#BREED ID: 1-25:Cat 1:12:Dog\n")
    lists = {"list":head+"".join(map(Pets.line, Pets.trainval+Pets.test)),
             "trainval":"".join(map(Pets.line, Pets.trainval)), "test":"".join(map(Pets.line, Pets.test))}
    notes = [(f"annotations/{name}.txt", text.encode()) for name,text in lists.items()]
    notes += [("annotations/README", b"OXFORD-IIIT PET Dataset\n"), ("./._annotations", b"\0\5\x16\7")]
    for i in names:
        out = io.BytesIO()
        Image.fromarray(Pets.trimap(i)).save(out, format="PNG")
        notes += [(f"annotations/trimaps/._{i}.png", b"\0\5\x16\7\0\2\0\0Mac OS X"),
                  (f"annotations/trimaps/{i}.png", out.getvalue()),
                  (f"annotations/xmls/{i}.xml", voc_xml(i, (9,9), ["cat"]))]
    return {"images.tar.gz":packed(photos+stray), "annotations.tar.gz":packed(notes)}


@pytest.fixture(scope="session")
def archives():
    return {"VOCtrainval_11-May-2012.tar":voc_tar(), "benchmark.tgz":sbd_tgz()} | coco_zips() | pets_archives()

@pytest.fixture
def site(archives, monkeypatch):
    "A server of the miniatures; the published addresses are replaced by ones where nobody listens"
    counts = {"VOCtrainval_11-May-2012.tar":{"JPEGImages/*.jpg":48, "Annotations/*.xml":48,
                                             "SegmentationClass/*.png":22}, "benchmark.tgz":{"cls/*.mat":29},
              "train2014.zip":{"train2014/*.jpg":45},
              "val2014.zip":{"val2014/*.jpg":20}, "annotations_trainval2014.zip":{"instances_*2014.json":2}}
    for kind,known in download.ARCHIVES.items():
        monkeypatch.setitem(download.ARCHIVES, kind,
                            {name:a._replace(url=a.url and f"http://127.0.0.1:9/{name}", checksum=a.checksum
                                             and f"md5:{hashlib.md5(archives[name]).hexdigest()}",
                                             holds=counts.get(name), gigabytes=0) for name,a in known.items()})
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving({f"/{name}":data for name,data in archives.items()}) as server: yield server
